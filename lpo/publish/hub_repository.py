"""A repository of the Hugging Face hub: one commit a model, and a tag with the model's name.

The address and the token are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN or `hf auth login`.
"""

from __future__ import annotations

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from lpo import hub
from lpo.publish.package import REWARD, Package


def push(package: Package, place: str) -> str:
    """Commit the package to main, and tag the commit. A repository that is missing is made, private.

    Files of an earlier reward are removed; files that others put into the repository stay.

    Raises:
        LpoError: if the hub refuses, or cannot be reached.
    """
    api = HfApi()
    try:
        api.create_repo(place, private=True, exist_ok=True)
        old = [name for name in api.list_repo_files(place) if name.startswith(f"{REWARD}/")]
        commit = api.create_commit(  # upload_folder may make several, and leave the files of two models side by side
            place,
            [CommitOperationAdd(name, str(path)) for name, path in package.files.items()]
            + [CommitOperationDelete(name) for name in old if name not in package.files],
            commit_message=f"{package.name}: {package.record['reason']}"[:200],
        )
        api.create_tag(place, tag=package.name, revision=commit.oid, exist_ok=True)
    except (OSError, ValueError) as error:
        remedy = "set HF_TOKEN to a token that may write, and HF_HUB_OFFLINE=0"
        raise hub.refusal(error, f"the upload failed: {str(error).splitlines()[0][:200]}", place, remedy) from error
    return f"{constants.ENDPOINT}/{place}/tree/{package.name}"
