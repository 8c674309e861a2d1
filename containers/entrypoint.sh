#!/bin/sh
# Make the working directory a clone of LPO_REPOSITORY with LPO_REMOTE as DVC's remote, then run the command in it.
# Without LPO_REPOSITORY the folder stays as it is. Keys of S3 are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
set -eu
if [ -n "${LPO_REPOSITORY:-}" ] && [ ! -d .git ]; then
    git clone --quiet --branch "${LPO_BRANCH:-main}" "$LPO_REPOSITORY" .
fi
if [ -n "${LPO_REMOTE:-}" ] && [ -d .dvc ]; then # in .dvc/config.local, which git does not see
    dvc remote add --quiet --local --force --default store "$LPO_REMOTE"
    if [ -n "${AWS_ENDPOINT_URL:-}" ]; then
        dvc remote modify --quiet --local store endpointurl "$AWS_ENDPOINT_URL"
    fi
fi
exec "$@"
