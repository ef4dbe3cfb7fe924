"""Bedrock's four calls and the little of STS that its clients need.

Owns the HTTP side: rest-json for Bedrock, query protocol for STS. Must not know how jobs live
(`bedrock_jobs`).
"""

import base64
import json
import re
import secrets
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote

from aiohttp import web

from . import aws_model, dialects
from .bedrock_jobs import Job, Jobs
from .gateway import ApiError, Call, Gateway
from .settings import InForce

_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
_STATUS = {
    "AccessDeniedException": 403,
    "ConflictException": 400,
    "InternalServerException": 500,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 400,
    "ServiceUnavailableException": 503,
    "ThrottlingException": 429,
    "ValidationException": 400,
}
_BY_STATUS = {
    400: ("ValidationException", "The request is not valid."),
    403: ("AccessDeniedException", "You don't have access to the requested resource."),
    404: ("ResourceNotFoundException", "The resource was not found."),
    429: ("ThrottlingException", "Too many requests, please wait before trying again."),
    500: ("InternalServerException", "The server encountered an internal error."),
    503: ("ServiceUnavailableException", "The service is unavailable."),
}
_QUOTA_TEXT = (
    "The number of submitted and in-progress batch inference jobs for model {model} "
    "has reached the quota of {limit} for your account. Wait for jobs to end, or request "
    "a quota increase."
)


def aws_error(
    code: str, message: str, status: int | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    """Render an error as rest-json services do."""
    return web.json_response(
        {"message": message},
        status=status if status is not None else _STATUS.get(code, 400),
        headers={
            **(headers or {}),
            "x-amzn-ErrorType": code,
            "x-amzn-RequestId": secrets.token_hex(16),
        },
    )


def caller_of(request: web.Request, accounts: dict[str, str]) -> tuple[str, str] | None:
    """Return the account and region that a request is signed for; None for a foreign key.

    Raises:
        ApiError: the request carries no signature.
    """
    match = _CREDENTIAL.search(request.headers.get("Authorization", ""))
    if match is None:
        raise ApiError(
            aws_error("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
        )
    account = accounts.get(match[1])
    return None if account is None else (account, match[2])


class BedrockService:
    """Bedrock's control plane as its callers see it."""

    name = "bedrock"

    def __init__(self, settings: InForce, jobs: Jobs, accounts: dict[str, str]) -> None:
        self._settings = settings
        self._jobs = jobs
        self._accounts = accounts

    def routes(self, gateway: Gateway) -> list[web.RouteDef]:
        """List the routes of the service."""

        def call(name: str, handler: Any, *subject: Any) -> Any:
            return gateway.operation(self, name, handler, *subject)

        get = call("GetModelInvocationJob", self._get, self._subject)
        stop = call("StopModelInvocationJob", self._stop, self._subject)
        return [
            web.post("/model-invocation-job", call("CreateModelInvocationJob", self._create)),
            web.get("/model-invocation-jobs", call("ListModelInvocationJobs", self._list)),
            web.post("/model-invocation-job/{id:.+}/stop", stop),
            web.get("/model-invocation-job/{id:.+}", get),
        ]

    # -- manners (`gateway.Face`)

    def authenticate(self, request: web.Request) -> str:
        """Return the account and region of the request's signature."""
        caller = caller_of(request, self._accounts)
        if caller is None:
            text = "The security token included in the request is invalid."
            raise ApiError(aws_error("UnrecognizedClientException", text, 403))
        return "/".join(caller)

    def error(
        self, status: int, code: str | None, message: str | None, headers: dict[str, str]
    ) -> web.Response:
        """Render an error."""
        usual_code, usual_text = _BY_STATUS.get(status, _BY_STATUS[500])
        return aws_error(code or usual_code, message or usual_text, status, headers)

    def rate(self) -> tuple[float | None, float]:
        """Return the throttle."""
        settings = self._settings.bedrock
        return settings.requests_per_s, settings.retry_after_s

    # -- calls

    async def _create(self, call: Call) -> web.Response:
        request = _checked(await call.request.text(), "CreateModelInvocationJobRequest")
        token = request.get("clientRequestToken") or secrets.token_hex(16)
        if (earlier := self._jobs.with_token(token, call.scope)) is not None:
            earlier.replays += 1
            return web.json_response({"jobArn": earlier.arn})
        account = call.scope.partition("/")[0]
        if request["roleArn"].split(":")[4] not in {"", account}:
            text = "Cross-account pass role is not allowed."
            raise ApiError(aws_error("AccessDeniedException", text))
        if (problem := dialects.model_problem(request["modelId"])) is not None:
            raise ApiError(aws_error("ValidationException", problem))
        if (namesake := self._jobs.with_name(request["jobName"], call.scope)) is not None:
            text = f"The job name {namesake.name} is currently in use. Choose another name."
            raise ApiError(aws_error("ConflictException", text))
        limit = self._settings.bedrock.max_active_jobs
        full = self._jobs.active(request["modelId"], call.scope) >= limit
        if full or call.hit_by("quota") is not None:
            text = _QUOTA_TEXT.format(model=request["modelId"], limit=limit)
            raise ApiError(aws_error("ServiceQuotaExceededException", text))
        job = self._jobs.accept(call.scope, request, token, call.hit_by("fail"))
        return web.json_response({"jobArn": job.arn})

    def _identifier(self, call: Call) -> str:
        return unquote(call.request.match_info["id"])

    async def _subject(self, call: Call) -> str:
        identifier = self._identifier(call)
        job = self._jobs.get(identifier.rpartition("/")[2], call.scope)
        return identifier if job is None else f"{identifier} {job.name} {job.token}"

    def _named(self, call: Call) -> Job:
        identifier = self._identifier(call)
        problems = aws_model.load("bedrock").problems(
            "GetModelInvocationJobRequest", {"jobIdentifier": identifier}
        )
        if problems:
            raise ApiError(aws_error("ValidationException", aws_model.validation_text(problems)))
        job = self._jobs.get(identifier.rpartition("/")[2], call.scope)
        if job is None or (identifier.startswith("arn:") and identifier != job.arn):
            text = f"Could not find the model invocation job {identifier}."
            raise ApiError(aws_error("ResourceNotFoundException", text))
        return job

    async def _get(self, call: Call) -> web.Response:
        return web.json_response(self._jobs.view(self._named(call)))

    async def _stop(self, call: Call) -> web.Response:
        job = self._named(call)
        if job.is_over:
            text = f"The job cannot be stopped because it has ended. State was: {job.status}"
            raise ApiError(aws_error("ValidationException", text))
        if job.status == "Stopping":
            text = "The job is being stopped already. State was: Stopping"
            raise ApiError(aws_error("ConflictException", text))
        self._jobs.stop_job(job)
        return web.json_response({})

    async def _list(self, call: Call) -> web.Response:
        query: dict[str, Any] = dict(call.request.query)
        if "maxResults" in query:
            try:
                query["maxResults"] = int(query["maxResults"])
            except ValueError:
                text = "maxResults must be a number"
                raise ApiError(aws_error("ValidationException", text)) from None
        problems = aws_model.load("bedrock").problems("ListModelInvocationJobsRequest", query)
        if problems:
            raise ApiError(aws_error("ValidationException", aws_model.validation_text(problems)))
        after = _milliseconds(query.get("submitTimeAfter"), -1)
        before = _milliseconds(query.get("submitTimeBefore"), 1 << 62)
        found = [
            job
            for job in self._jobs.listed(call.scope)
            if query.get("statusEquals") in {None, job.status}
            and query.get("nameContains", "") in job.name
            # AWS shows and compares milliseconds.
            and after < int(job.submit_time * 1000) < before
        ]
        if query.get("sortOrder", "Descending") == "Descending":
            found.reverse()
        start = self._start(found, query.get("nextToken"))
        size = query.get("maxResults", self._settings.bedrock.page_size)
        page = found[start : start + size]
        answer: dict[str, Any] = {"invocationJobSummaries": [self._jobs.view(job) for job in page]}
        if start + size < len(found):
            answer["nextToken"] = base64.urlsafe_b64encode(page[-1].id.encode()).decode()
        return web.json_response(answer)

    def _start(self, found: list[Job], token: str | None) -> int:
        """Return where a page begins: behind the job that the token names."""
        if token is None:
            return 0
        try:
            last = base64.urlsafe_b64decode(token.encode()).decode()
        except ValueError:
            last = ""
        for place, job in enumerate(found, start=1):
            if job.id == last:
                return place
        raise ApiError(aws_error("ValidationException", "The nextToken is invalid."))


def _checked(text: str, shape: str) -> dict[str, Any]:
    try:
        request = json.loads(text)
        problems = aws_model.load("bedrock").problems(shape, request)
    except (ValueError, aws_model.WrongType) as error:
        raise ApiError(aws_error("SerializationException", str(error), 400)) from error
    if problems:
        raise ApiError(aws_error("ValidationException", aws_model.validation_text(problems)))
    checked: dict[str, Any] = request
    return checked


def _milliseconds(text: str | None, default: int) -> int:
    return default if text is None else int(datetime.fromisoformat(text).timestamp() * 1000)


class StsService:
    """GetCallerIdentity and AssumeRole."""

    name = "sts"

    def __init__(self, accounts: dict[str, str]) -> None:
        self._accounts = accounts

    def routes(self, gateway: Gateway) -> list[web.RouteDef]:
        """List the one route of the query protocol."""
        return [web.post("/", gateway.operation(self, "sts", self._answer))]

    def authenticate(self, request: web.Request) -> str:
        """Return the account and region of the request's signature."""
        caller = caller_of(request, self._accounts)
        if caller is None:
            text = "The security token included in the request is invalid."
            raise ApiError(self.error(403, "InvalidClientTokenId", text, {}))
        return "/".join(caller)

    def error(
        self, status: int, code: str | None, message: str | None, headers: dict[str, str]
    ) -> web.Response:
        """Render an error as query services do."""
        code = code or ("Throttling" if status == 429 else "InternalFailure")
        return web.Response(
            text=f'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error>'
            f"<Type>Sender</Type><Code>{code}</Code><Message>{message or code}</Message></Error>"
            f"<RequestId>{secrets.token_hex(16)}</RequestId></ErrorResponse>",
            status=status,
            content_type="text/xml",
            headers=headers,
        )

    def rate(self) -> tuple[float | None, float]:
        """STS is not throttled here."""
        return None, 1.0

    async def _answer(self, call: Call) -> web.Response:
        form = {key: values[0] for key, values in parse_qs(await call.request.text()).items()}
        account = call.scope.partition("/")[0]
        action = form.get("Action", "")
        if action == "GetCallerIdentity":
            inner = (
                f"<Arn>arn:aws:iam::{account}:user/sandbox</Arn><UserId>AIDASANDBOX</UserId>"
                f"<Account>{account}</Account>"
            )
        elif action == "AssumeRole":
            inner = self._assume(form)
        else:
            raise ApiError(self.error(400, "InvalidAction", f"Could not find {action}", {}))
        return web.Response(
            text=f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<{action}Result>{inner}</{action}Result><ResponseMetadata><RequestId>"
            f"{secrets.token_hex(16)}</RequestId></ResponseMetadata></{action}Response>",
            content_type="text/xml",
        )

    def _assume(self, form: dict[str, str]) -> str:
        given = {name: form[name] for name in ("RoleArn", "RoleSessionName", "ExternalId")
                 if name in form}  # fmt: skip
        problems = aws_model.load("sts").problems("AssumeRoleRequest", given)
        parts = form.get("RoleArn", "").split(":", 5)
        if not problems and (len(parts) < 6 or not parts[5].startswith("role/")):
            problems = [f"{form['RoleArn']} is not the ARN of a role"]
        if problems:
            text = aws_model.validation_text(problems)
            raise ApiError(self.error(400, "ValidationError", text, {}))
        session = form["RoleSessionName"]
        key = f"ASIA{secrets.token_hex(8).upper()}"
        self._accounts[key] = parts[4]
        role = parts[5].rpartition("/")[2]
        return (
            f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>unchecked"
            "</SecretAccessKey><SessionToken>unchecked</SessionToken>"
            "<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser>"
            f"<Arn>arn:aws:sts::{parts[4]}:assumed-role/{role}/{session}</Arn>"
            f"<AssumedRoleId>AROASANDBOX:{session}</AssumedRoleId></AssumedRoleUser>"
        )
