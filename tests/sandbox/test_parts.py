"""The parts that are plain functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import batchinference.sandbox
from batchinference.sandbox import answers, aws_model, s3, spells, vectors
from batchinference.sandbox.clock import Clock, iso8601
from batchinference.sandbox.lines import Lines


def test_the_sandbox_imports_nothing_else_of_the_package():
    for path in Path(batchinference.sandbox.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name}: leaves the sandbox"
                names = [node.module or ""] if node.level == 0 else []
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                assert not name.startswith("batchinference"), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("content", "expected", "reason"),
    [
        (b"", [], "empty"),
        (b"a", [b"a"], "no final newline"),
        (b"a\n", [b"a"], "one line"),
        (b"a\n\nb\n", [b"a", b"", b"b"], "an empty line in the middle"),
        ("a\u2028b\r\nc".encode(), ["a\u2028b\r".encode(), b"c"], "split on \\n only"),
    ],
)
def test_lines_are_split_on_the_newline_byte_alone(tmp_path, content, expected, reason):
    path = tmp_path / "lines"
    path.write_bytes(content)
    with Lines(path) as lines:
        assert [lines[number] for number in range(len(lines))] == expected, reason
        with pytest.raises(IndexError):
            lines[len(expected)]


@pytest.mark.parametrize(
    ("system", "user", "expected", "reason"),
    [
        ("Classify as billing, technical or other.", "A technical matter", "technical", "named"),
        ("one of: cat | dog", "my dog", "dog", "another separator"),
        ("", "say hello to the world", "Summary: say hello to the world", "no labels"),
        ("You summarise.", "a b", "Summary: a b", "a system text without labels"),
    ],
)
def test_answers_pick_a_label_or_sum_up(system, user, expected, reason):
    assert answers.compose(system, user) == expected, reason


def test_the_same_prompt_gets_the_same_label_and_others_may_get_others():
    system = "Classify as red, green or blue."
    labels = {answers.compose(system, f"text {number}") for number in range(50)}
    assert labels == {"red", "green", "blue"}
    assert answers.compose(system, "text 1") == answers.compose(system, "text 1")


def test_instances_satisfy_their_schema():
    from jsonschema import validate

    schema = {
        "type": "object",
        "required": ["a", "b", "c", "d", "e", "f", "g"],
        "properties": {
            "a": {"enum": ["x", "y"]},
            "b": {"type": "array", "minItems": 2, "items": {"type": "number", "maximum": 5}},
            "c": {"type": ["string", "null"]},
            "d": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "e": {"const": 3},
            "f": {"type": "null"},
            "g": {"type": "object", "properties": {"h": {"type": "integer", "minimum": 4}}},
        },
    }
    validate(answers.instance_of(schema, "some text with y"), schema)


def test_vectors_have_unit_length_whatever_the_text():
    for text in ("", "a", "hello world", "🙂" * 100):
        vector = vectors.embed(text, 64)
        assert sum(value * value for value in vector) == pytest.approx(1)
    assert vectors.embed("same", 64) == vectors.embed("same", 64)


def test_spells_are_read_and_once_is_spent():
    raw = b'{"body": "SANDBOX:error-503 SANDBOX:long-7 SANDBOX:missing SANDBOX:unknown"}'
    found = spells.read(raw)
    assert (found.error_status, found.answer_words, found.words) == (503, 7, {"missing"})
    spent: set[str] = set()
    once = b'{"body": "SANDBOX:missing-once"}'
    assert "missing" in spells.read(once, (), spent)
    assert "missing" not in spells.read(once, spent)
    assert spells.read(b"nothing here") is spells.NONE


def test_the_service_model_lists_every_problem():
    problems = aws_model.load("bedrock").problems(
        "CreateModelInvocationJobRequest", {"jobName": "a_b", "inputDataConfig": {}}
    )
    text = aws_model.validation_text(problems)
    assert text.startswith("5 validation errors detected: ")
    for name in ("roleArn", "modelId", "outputDataConfig", "jobName", "inputDataConfig"):
        assert name in text
    with pytest.raises(aws_model.WrongType, match="jobName"):
        aws_model.load("bedrock").problems("CreateModelInvocationJobRequest", {"jobName": 5})


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "operation"),
    [
        ("GET", "/b/k", "", {}, "GetObject"),
        ("PUT", "/b/k", "", {}, "PutObject"),
        ("PUT", "/b/k", "", {"HTTP_X_AMZ_COPY_SOURCE": "b/o"}, "CopyObject"),
        ("PUT", "/b/k", "partNumber=1&uploadId=u", {}, "UploadPart"),
        ("POST", "/b/k", "uploads", {}, "CreateMultipartUpload"),
        ("POST", "/b/k", "uploadId=u", {}, "CompleteMultipartUpload"),
        ("DELETE", "/b/k", "uploadId=u", {}, "AbortMultipartUpload"),
        ("POST", "/b", "delete", {}, "DeleteObjects"),
        ("GET", "/b", "list-type=2&prefix=x", {}, "ListObjectsV2"),
        ("HEAD", "/b", "", {}, "HeadBucket"),
        ("GET", "/", "", {}, "ListBuckets"),
    ],
)
def test_s3_operations_have_their_names(method, path, query, headers, operation):
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, **headers}
    assert s3.operation_of(environ) == operation


def test_the_clock_only_goes_forward():
    clock = Clock()
    before = clock.now()
    clock.advance(100)
    assert clock.now() >= before + 100
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)
    assert iso8601(0.5) == "1970-01-01T00:00:00.500Z"
