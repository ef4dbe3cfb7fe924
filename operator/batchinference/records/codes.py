"""The stable error codes of result lines. Owns the words; every one is part of the API.

Found while staging; the record is never sent and costs nothing:

    code                  meaning
    InvalidJSON           the line is not JSON (NaN, trailing commas, control characters, lone
                          surrogates and cut lines included)
    InvalidEncoding       the line is not UTF-8
    NotAnObject           the line is JSON, but not an object
    DuplicateKey          the object, or its body, has the same key twice
    MissingField          a field that every record needs is absent
    WrongType             a field has another type than it must have
    DuplicateID           the custom_id stood in an earlier record already
    WrongMethod           `method` is not POST
    WrongURL              `url` is not the job's operation
    StreamingUnsupported  the body asks for a stream
    ModelMismatch         the body names another model than the job
    LineTooLong           the line, or the request made of it, is above the provider's limit
    TooDeep               objects and lists are nested too deeply
    NumberOutOfRange      a number that no double can hold, where the body must be translated
    UnsupportedOption     the body has an option that this provider can't do
    UnsupportedContent    the body has content that this provider can't take
    ProviderMismatch      a line in a provider's own format, for another provider
    MixedFormats          a line in another format than the first good one
    WrongFieldCount       a row of a table has more or fewer fields than its header
    TemplateFailed        the prompt template can't be applied to the row
    LocationNotAllowed    the record names an S3 location that its job may not name

Came with, or in place of, a provider's answer:

    BatchExpired          the batch ran out of time before the record was processed; not billed
    BatchCancelled        the batch was cancelled before the record was processed; not billed
    NotProcessed          the batch ended without processing the record; not billed
    BatchFailed           the provider failed or refused the batch as a whole; not billed
    BelowProviderMinimum  too few records were left for another batch; not billed
    NotSubmitted          the run ended before the record was sent; not billed
    BudgetExceeded        sending it again could have passed the budget; not billed
    AnswerLost            it may have been processed and billed, but its answer is gone
    ProviderError         the provider reported an error without a code of its own

A provider's own codes for single records (`context_length_exceeded`, ...) are passed on unchanged.
"""

from __future__ import annotations

from typing import Final

INVALID_JSON: Final = "InvalidJSON"
INVALID_ENCODING: Final = "InvalidEncoding"
NOT_AN_OBJECT: Final = "NotAnObject"
DUPLICATE_KEY: Final = "DuplicateKey"
MISSING_FIELD: Final = "MissingField"
WRONG_TYPE: Final = "WrongType"
DUPLICATE_ID: Final = "DuplicateID"
WRONG_METHOD: Final = "WrongMethod"
WRONG_URL: Final = "WrongURL"
STREAMING_UNSUPPORTED: Final = "StreamingUnsupported"
MODEL_MISMATCH: Final = "ModelMismatch"
LINE_TOO_LONG: Final = "LineTooLong"
TOO_DEEP: Final = "TooDeep"
NUMBER_OUT_OF_RANGE: Final = "NumberOutOfRange"
UNSUPPORTED_OPTION: Final = "UnsupportedOption"
UNSUPPORTED_CONTENT: Final = "UnsupportedContent"
PROVIDER_MISMATCH: Final = "ProviderMismatch"
MIXED_FORMATS: Final = "MixedFormats"
WRONG_FIELDS: Final = "WrongFieldCount"
TEMPLATE_FAILED: Final = "TemplateFailed"
LOCATION_NOT_ALLOWED: Final = "LocationNotAllowed"

BATCH_EXPIRED: Final = "BatchExpired"
BATCH_CANCELLED: Final = "BatchCancelled"
NOT_PROCESSED: Final = "NotProcessed"
BATCH_FAILED: Final = "BatchFailed"
BELOW_MINIMUM: Final = "BelowProviderMinimum"
NOT_SUBMITTED: Final = "NotSubmitted"
BUDGET_EXCEEDED: Final = "BudgetExceeded"
ANSWER_LOST: Final = "AnswerLost"
PROVIDER_ERROR: Final = "ProviderError"
