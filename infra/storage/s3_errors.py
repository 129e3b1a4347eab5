"""S3 errors: one table of causes and their failure classes."""

from __future__ import annotations

import os
from pathlib import Path

from botocore import exceptions as aws
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from infra.storage.base import ChangedObjectError, MissingKeyError, StorageAwayError, StorageError
from infra.storage.failures import FailureClass

S3_ERRORS = (aws.BotoCoreError, aws.ClientError, RetriesExceededError, S3DownloadFailedError)
"""What a call of boto3 raises."""
MISSING = {"NoSuchKey", "404", "NotFound"}
REFUSED = {"PreconditionFailed", "412"}
"""The condition of a conditional write did not hold."""

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the AWS profile)"
_NO_CREDENTIALS = (
    "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
)
_REGION = "the bucket is in another region; set AWS_REGION to it"
_CAUSES = {
    "NoSuchBucket": "the bucket does not exist; create it, or correct the URI",
    "403": "access is denied, or the credentials are wrong; " + _CREDENTIALS,
    "InvalidAccessKeyId": "the server does not know the access key; " + _CREDENTIALS,
    "SignatureDoesNotMatch": "the server refuses the secret key; " + _CREDENTIALS,
    "ExpiredToken": "the session token has expired; get new credentials",
    "InvalidToken": "the session token is not valid; get new credentials",
    "RequestTimeTooSkewed": "this machine's clock and the server's differ too much; set the clock (NTP)",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "InsufficientStorage": "the server's disk is full; free some space there",
    "QuotaExceeded": "the bucket's quota is used up; free some space there",
    "InvalidRange": "it is shorter than its index says: changed since; run `python -m jobs.index` again",
    "NotImplemented": "the server can't do this (501 NotImplemented), for a run most likely conditional writes; "
    "use one that does, as AWS S3 or SeaweedFS",
}
_NEEDS = {
    "read": "s3:GetObject and s3:ListBucket",
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "list the unfinished uploads to": "s3:ListBucketMultipartUploads",
    "abort an upload to": "s3:AbortMultipartUpload",
}
_BUSY = {
    *("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "ServiceUnavailable"),
    *("InternalError", "ConditionalRequestConflict", "OperationAborted", "BadDigest", "IncompleteBody"),
}
_NEVER = {501, 505}
"""Statuses of a server that does not know the request, and will not learn it."""
_TRANSPORT = (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.FlexibleChecksumError)
_METADATA = (aws.CredentialRetrievalError, aws.MetadataRetrievalError)


def code_of(error: Exception) -> str:
    """Return the code of a server's answer; empty where there was none."""
    return str(error.response.get("Error", {}).get("Code", "unknown")) if isinstance(error, aws.ClientError) else ""


def class_of(error: Exception) -> FailureClass:
    """Return the class of a failed call: whether the server is away, slow, busy or broken, or what else it is."""
    if isinstance(error, aws.ClientError):
        return _class_of_answer(error)
    if isinstance(error, aws.NoCredentialsError):
        return FailureClass.TRANSIENT if _has_metadata_service() else FailureClass.OPERATOR
    passing = (*_TRANSPORT, *_METADATA, RetriesExceededError, S3DownloadFailedError)
    if isinstance(error, passing) and not isinstance(error, aws.SSLError):
        return FailureClass.TRANSIENT
    return FailureClass.OPERATOR


def _class_of_answer(error: aws.ClientError) -> FailureClass:
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "InvalidRange":
        return FailureClass.DATA
    if code == "NotImplemented" or status in _NEVER:
        return FailureClass.OPERATOR
    busy = status >= 500 or status in (408, 429) or code in _BUSY
    return FailureClass.TRANSIENT if busy else FailureClass.OPERATOR


def explained(action: str, location: str, error: Exception, server: str) -> StorageError:
    """Return the one line that a failed call comes to."""
    where = f"cannot {action} {location}"
    if code_of(error) in MISSING:
        return MissingKeyError(f"{where}: it does not exist")
    kinds = {FailureClass.TRANSIENT: StorageAwayError, FailureClass.DATA: ChangedObjectError}
    return kinds.get(class_of(error), StorageError)(f"{where}: {_cause(action, error, server)}")


def _cause(action: str, error: Exception, server: str) -> str:
    code = code_of(error)
    if code == "AccessDenied":
        return f"access is denied; the credentials need {_NEEDS.get(action, 's3:DeleteObject')}"
    if code:
        return _CAUSES.get(code, f"the server answers {code}")
    if isinstance(error, _METADATA):
        return "the credentials can't be fetched from where this machine gets them; look at its role or profile"
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return _NO_CREDENTIALS
    if isinstance(error, aws.SSLError):
        return f"the certificate of {server} is not trusted; set AWS_CA_BUNDLE"
    if class_of(error) is FailureClass.TRANSIENT:
        return f"no answer from {server}; check the network and AWS_ENDPOINT_URL"
    return f"{type(error).__name__} from {server}"


def _has_metadata_service() -> bool:
    """Say whether this machine gets its credentials from a service, which may be away for a moment."""
    given = ("CONTAINER_CREDENTIALS_RELATIVE_URI", "CONTAINER_CREDENTIALS_FULL_URI", "WEB_IDENTITY_TOKEN_FILE")
    if any(os.environ.get(f"AWS_{name}") for name in given):
        return True
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    return bool(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")) or _is_on_ec2()


def _is_on_ec2() -> bool:
    try:
        return "amazon" in Path("/sys/class/dmi/id/sys_vendor").read_text().lower()
    except OSError:
        return False
