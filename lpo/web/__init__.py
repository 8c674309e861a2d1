"""Web services: Starlette apps, and what they share.

access.py holds the token, the host check and the size limit of a request. server.py runs an app.
"""
