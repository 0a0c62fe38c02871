"""The OpenAPI document made fit for people: what an operation does in its title, and values that one can send."""

from typing import Any

from fastapi import FastAPI

from parshall.app.examples import BODIES, FORMS, PARAMETERS

Json = dict[str, Any]

METHODS = ("get", "post", "put", "patch", "delete")
INTRODUCTION = (
    "Log in at `POST /api/auth/login` and send the `accessToken` as `Authorization: Bearer …`. "
    "All of this is also [a Postman collection](/postman.json); the guides are at [/](/)."
)
_CHAPTERS = ("auth", "accounting", "chat", "streams", "supervision", "debugging", "operations")


def describe(app: FastAPI) -> None:
    """Have the application's document completed; it is made once, when somebody first asks for it."""
    plain = app.openapi
    app.description = INTRODUCTION

    def openapi() -> Json:
        if app.openapi_schema is None:
            _complete(plain())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend the document


def operations(document: Json) -> list[tuple[str, str, Json]]:
    """Method, path and description of every operation, in the document's order."""
    return [
        (method.upper(), path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
        if method in METHODS
    ]


def _complete(document: Json) -> None:
    document["paths"] = dict(sorted(document["paths"].items(), key=lambda item: _chapter(item[1])))
    for _, _, described in operations(document):
        described["summary"] = title_of(described)
        for parameter in described.get("parameters", ()):
            _explain(parameter)
        for media_type, content in described.get("requestBody", {}).get("content", {}).items():
            _exemplify(media_type, content)


def _chapter(path: Json) -> int:
    """Where people read of a path: one logs in before one asks. The routes themselves stand as they are looked for."""
    tags: list[str] = next(iter(path.values())).get("tags") or [""]
    return _CHAPTERS.index(tags[-1]) if tags[-1] in _CHAPTERS else len(_CHAPTERS)


def title_of(described: Json) -> str:
    """The first clause of what an operation says of itself."""
    sentence = str(described.get("description", described["summary"])).partition("\n")[0]
    for end in (". ", "; ", ": ", ", where", ", which", ", with the", ", each with"):
        sentence = sentence.partition(end)[0]
    return sentence.rstrip(".")


def _explain(parameter: Json) -> None:
    known = PARAMETERS.get(parameter["name"])
    if known is not None:
        parameter.setdefault("description", known[0])
        parameter["example"] = known[1]


def _exemplify(media_type: str, content: Json) -> None:
    if media_type == "application/json":
        schema = content["schema"]
        named = next((each for each in (schema, *schema.get("anyOf", ())) if "$ref" in each), {"$ref": ""})
        example = BODIES.get(named["$ref"].rpartition("/")[2])
    else:
        example = FORMS.get(media_type)
    if example is not None:
        content["example"] = example
