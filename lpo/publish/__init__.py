"""Where promoted models go: a repository of the hub, the registries of W&B and MLflow, a folder.

package.py makes the folder that is published. places.py knows which place shows which model. The other files know one
kind of place each: `push(package, place)` puts the package there and returns where it is.
"""
