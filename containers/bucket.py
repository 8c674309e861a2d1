"""Create the bucket of LPO_REMOTE (s3://BUCKET/...) in the object store at AWS_ENDPOINT_URL, unless it is there."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import boto3


def main() -> None:
    bucket = urlsplit(os.environ["LPO_REMOTE"]).netloc
    client = boto3.client("s3", region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    known = [found["Name"] for found in client.list_buckets()["Buckets"]]
    if bucket not in known:
        client.create_bucket(Bucket=bucket)
    print(f"bucket {bucket}: {'already there' if bucket in known else 'created'}")


if __name__ == "__main__":
    main()
