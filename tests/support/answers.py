"""Answers of the provider, and how a task ends with each of them: the table of test_answers.py.

A row is (kind, answer, outcome). In an answer, `@ID` is replaced by the provider's id of the task,
and `@PROMPT` by its prompt, as JSON. A kind is what went wrong, or the shape of the answer; it has
a row for each shape that may be read differently.
"""

import json
from dataclasses import dataclass
from typing import Any

FAMILIES = ("imagen4", "sora2", "veo3", "midjourney")
JOBS, FLAGS = FAMILIES[:2], FAMILIES[2:]
URL = "https://x.example/a.png"
URLS = (URL, "https://x.example/b.png?sig=%2F%7E&x=1,2")
THOUSAND = tuple(f"https://x.example/{number}.png" for number in range(1_000))


@dataclass(frozen=True)
class Http:
    """An answer, to the byte."""

    body: str | bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    announced: int | None = None
    stays_open: bool = False


@dataclass(frozen=True)
class Becomes:
    """How a task ends. What is None or empty is not checked.

    Attributes:
        reason: "" for a success.
        words: They are in the failure's message.
        kept: It is in result_json.
        logged: It is in the log.
        creates: How often the paid request was sent.
    """

    reason: str = ""
    provider_id: str | None = None
    urls: tuple[str, ...] | None = None
    credits: float | None = None
    words: str = ""
    code: str | None = None
    kept: str = ""
    logged: str = ""
    creates: int = 1


@dataclass(frozen=True)
class Row:
    kind: str
    answer: Http
    becomes: Becomes
    families: tuple[str, ...] = ("imagen4",)


def j(value: Any, **http: Any) -> Http:
    return Http(json.dumps(value, ensure_ascii=False), **http)


def says(code: Any, msg: Any = "no", data: Any = None, **http: Any) -> Http:
    return j({"code": code, "msg": msg, "data": data}, **http)


def accepts(provider_id: str = "@ID") -> Becomes:
    return Becomes(provider_id=provider_id, urls=(URL,))


def refuses(reason: str, words: str = "", code: str | None = None) -> Becomes:
    return Becomes(reason, words=words, code=code)


LOST = "SUBMISSION_UNKNOWN"
SENT_AGAIN = Becomes(creates=2, urls=(URL,))
OK_TEXT = '{"code":200,"msg":"success","data":{"taskId":"@ID"}}'

# --- creates ---

CREATES: list[Row] = [
    *(
        Row(
            "create: the id at a place of its own", j({"code": 200, "msg": "ok", **rest}), accepts()
        )
        for rest in (
            {"data": {"taskId": "@ID", "recordId": "@ID"}},
            {"data": {"recordId": "@ID"}},
            {"data": {"task_id": "@ID"}},
            {"data": {"record_id": "@ID"}},
            {"data": {"taskID": "@ID"}},
            {"data": {"TaskId": "@ID"}},
            {"data": {"id": "@ID"}},
            {"data": {"jobId": "@ID"}},
            {"data": "@ID"},
            {"data": ["@ID"]},
            {"data": [{"taskId": "@ID"}]},
            {"data": [{"task_id": "@ID"}, {"taskId": "other-1"}]},
            {"data": {"task": {"id": "@ID"}}},
            {"data": {"data": {"taskId": "@ID"}}},
            {"data": {"list": [{"taskId": "@ID"}]}},
            {"data": {"taskId": {"id": "@ID"}}},
            {"data": {"taskId": "", "recordId": "@ID"}},
            {"taskId": "@ID"},
            {"taskId": "@ID", "data": None},
            {"task_id": "@ID", "data": {}},
            {"recordId": "@ID", "data": []},
            {"data": json.dumps({"taskId": "@ID"})},
            {"data": json.dumps(json.dumps({"taskId": "@ID"}))},
            {"data": {"taskId": "  @ID\n"}},
            {"data": {"param": {"taskId": "other-1"}, "taskId": "@ID"}},
        )
    ),
    *(
        Row("create: a number for an id", j({"code": 200, **rest}), accepts("@NUMBER"))
        for rest in ({"data": {"taskId": "@NUMBER"}}, {"data": "@NUMBER"}, {"taskId": "@NUMBER"})
    ),
    *(
        Row("create: the code in another form", Http(text), accepts())
        for text in (
            '{"code":"200","data":{"taskId":"@ID"}}',
            '{"code":200.0,"data":{"taskId":"@ID"}}',
            '{"code":" 200 ","data":{"taskId":"@ID"}}',
        )
    ),
    *(
        Row("create: text that JSON forbids", Http(text), accepts())
        for text in (
            OK_TEXT.encode().replace(b"success", b"a cut character \xe7\x8c"),
            OK_TEXT.replace("success", "a raw\nline feed\tand a tab"),
            OK_TEXT.encode().replace(b"success", b"\xff\xfe\x80"),
            OK_TEXT.replace("success", "a lone surrogate \\ud800"),
            OK_TEXT.replace("success", "NUL \\u0000"),
            OK_TEXT.replace("success", "a raw \x01 control"),
        )
    ),
    *(
        Row("create: a mark before it, or another encoding", Http(text), accepts())
        for text in (
            b"\xef\xbb\xbf" + OK_TEXT.encode(),
            OK_TEXT.encode("utf-16"),
            b"\r\n \t" + OK_TEXT.encode() + b"\n\n",
        )
    ),
    *(
        Row("create: numbers that JSON does not have", Http(OK_TEXT[:-1] + text), accepts())
        for text in (
            ',"x":NaN}',
            ',"x":-Infinity}',
            ',"x":[Infinity,1e999]}',
            ',"x":' + "9" * 5_000 + "}",
        )
    ),
    *(
        Row("create: JSON text of JSON text", Http(text), accepts())
        for text in (
            json.dumps(OK_TEXT),
            json.dumps(json.dumps(OK_TEXT)),
            f"[{OK_TEXT}]",
        )
    ),
    *(
        Row("create: HTTP around a good answer", Http(OK_TEXT, **http), accepts())
        for http in (
            {"status": 201},
            {"headers": (("X-Long", "x" * 9_000),)},
            {"headers": (("Set-Cookie", "y" * 20_000),)},
            {"headers": (("Content-Type", "text/html"),)},
            {"announced": 5_000, "stays_open": True},
            {"announced": 5_000},
        )
    ),
    *(
        Row("create: an id in an answer that is cut", Http(text, announced=length), accepts())
        for text, length in (
            ('{"code":200,"msg":"success","data":{"taskId":"@ID"', None),
            ('{"code":200,"msg":"success","data":{"taskId":"@ID","recordId":"@', None),
            ('{"msg":"success","data":{"taskId": "@ID" }', None),
            ('{"data":{"task_id":"@ID"', 900),
        )
    ),
    *(
        Row("create: an id next to a code without a meaning", Http(text, status), accepts())
        for text, status in (
            ('{"msg":"success","data":{"taskId":"@ID"}}', 200),
            ('{"code":null,"data":{"taskId":"@ID"}}', 200),
            ('{"code":"OK","data":{"taskId":"@ID"}}', 200),
            (OK_TEXT, 500),
            (OK_TEXT, 404),
            (OK_TEXT * 2, 200),
        )
    ),
    *(
        Row("create: a refusal that names a task", answer, accepts())
        for answer in (
            says(500, "Internal error", {"taskId": "@ID"}),
            says(408, "timeout", {"taskId": "@ID"}),
            says(422, "strange", [{"task_id": "@ID"}]),
            says(429, "too many", {"taskId": "@ID"}),
            says(455, "later", {"recordId": "@ID"}),
            j({"code": 999, "taskId": "@ID"}),
        )
    ),
    *(
        Row("create: nothing with an id in it", answer, Becomes(LOST, logged=logged))
        for answer, logged in (
            (says(200, "success and nothing more"), "success and nothing more"),
            (says(200, "x", "data"), '\\"data\\"'),
            (says(200, "x", {"taskId": " "}), "taskId"),
            (Http("<html>a page of the edge</html>"), "a page of the edge"),
            (Http("<html>502</html>", status=502), "502"),
            (Http(""), "HTTP 200"),
            (Http("OK"), "HTTP 200"),
            (Http('{"code":200,"data":{"taskId":"281e5b'), "281e5b"),
            (j([]), "HTTP 200"),
            (j("success"), "success"),
            (Http("moved", status=302), "302"),
        )
    ),
    *(
        Row("create: over a limit, or maintenance", answer, SENT_AGAIN)
        for answer in (
            says(429, "too many requests"),
            says(430, "Your call frequency is too high. Please try again later."),
            says(455, "maintenance"),
            Http("slow down", status=429),
            says("429", "x"),
            says(500, "The system is under maintenance"),
            says(500, "系统维护中"),
            says(422, "Service is undergoing maintenance, please try later"),
        )
    ),
    *(
        Row("create: words of an empty account", says(code, msg), refuses("CREDITS_EXHAUSTED", msg))
        for code, msg in (
            (402, "Payment required"),
            (433, "Sub-key Usage Exceeds Limit"),
            (500, "Credits insufficient"),
            (500, "Insufficient credits"),
            (422, "The current credits are insufficient. Please top up"),
            (500, "Your account balance is not enough to run this request"),
            (400, "You do not have enough credits"),
            (500, "余额不足"),
            (500, "您的积分不足"),
            (422, "账户额度不足"),
            (429, "Insufficient balance"),
        )
    ),
    *(
        Row(
            "create: words of a withdrawn model", says(code, msg), refuses("MODEL_UNAVAILABLE", msg)
        )
        for code, msg in (
            (505, "feature disabled"),
            (422, "The model name you specified is not supported. Please verify it"),
            (422, "The page does not exist or is not published"),
            (500, "Model sora-2 is not available"),
            (404, "Model not found"),
            (500, "This model has been deprecated"),
            (400, "Unsupported model: veo9"),
            (422, "The model 'sora-2' does not exist"),
            (422, "模型不存在"),
            (500, "该模型已下线"),
            (500, "sora is temporarily paused"),
        )
    ),
    *(
        Row("create: words of bad parameters", says(code, msg), refuses("PROVIDER_REJECTED", msg))
        for code, msg in (
            (400, "bad"),
            (404, "nothing there"),
            (422, "validation"),
            (451, "Failed to fetch the image"),
            (413, "too large"),
            (500, "This field is required"),
            (500, "aspect_ratio is not within the range of allowed options"),
            (500, "n_frames must be one of 10, 15"),
            (500, "Invalid parameter: seed"),
            (500, "prompt cannot be empty"),
            (500, "prompt exceeds the maximum length"),
            (500, "This resolution is not supported by this model"),
            (500, "提示词不能为空"),
            (500, "参数错误"),
            (501, "aspect_ratio不在允许的范围内"),
        )
    ),
    *(
        Row("create: a key that is refused", answer, refuses("PROVIDER_UNAUTHORIZED"))
        for answer in (
            says(401, "You do not have access permissions"),
            says(403, "forbidden"),
            says(401, "Credits insufficient"),
            Http("unauthorized", status=401),
        )
    ),
    *(
        Row("create: busy, which may hide a purchase", answer, refuses("PROVIDER_ERROR", code=code))
        for answer, code in (
            (says(500, "The system is busy, please try again later"), "500"),
            (says(500, "Server exception"), "500"),
            (says(408, "timeout"), "408"),
            (says(501, "failed"), "501"),
            (says(550, "queue full"), "550"),
            (Http("request timeout", status=408), "408"),
            (Http("client closed request", status=499), "499"),
        )
    ),
    *(
        Row("create: a bare page of the edge", Http("<p>no</p>", status=status), refuses(reason))
        for status, reason in ((400, "PROVIDER_REJECTED"), (413, "PROVIDER_REJECTED"))
    ),
    *(
        Row("create: words at another place", answer, refuses("PROVIDER_REJECTED", "so bad"))
        for answer in (
            j({"code": 422, "message": "so bad"}),
            j({"code": 422, "msg": "", "message": "so bad"}),
            j({"code": 422, "error": "so bad"}),
            j({"code": 422, "error": {"message": "so bad"}}),
            j({"code": 422, "data": "so bad"}),
            j({"code": 422, "msg": ["so bad"]}),
        )
    ),
    *(
        Row("create: a prompt that is quoted", says(code, msg), refuses(reason))
        for code, msg, reason in (
            (422, "The prompt '@QUOTE' was flagged", "PROVIDER_REJECTED"),
            (422, 'Rejected: "@QUOTE"', "PROVIDER_REJECTED"),
            (500, "Cannot translate “@QUOTE”", "PROVIDER_ERROR"),
            (500, "Cannot translate @QUOTE now", "PROVIDER_ERROR"),
            (422, "Flagged: @QUOTE", "PROVIDER_REJECTED"),
        )
    ),
]

# --- records ---


def job(state: Any, **fields: Any) -> Http:
    record = {"taskId": "@ID", "model": "m", "state": state, "param": "{}", **fields}
    return says(200, "success", record)


def flag(value: Any, **fields: Any) -> Http:
    return says(200, "success", {"taskId": "@ID", "successFlag": value, **fields})


GOOD_RECORD = '{"code":200,"msg":"ok","x":1,"data":{"state":"success","response":["' + URL + '"]}}'


def shapes(urls: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return fields of a record that contain URLs, each in a different form."""
    listed = list(urls)
    objects = {"resultUrls": listed}
    text = json.dumps(objects)
    return [
        {"response": objects, "resultJson": None},
        {"response": objects},
        {"response": objects, "resultJson": ""},
        {"response": text},
        {"response": listed},
        {"resultJson": text},
        {"resultJson": objects},
        {"resultJson": json.dumps(text)},
        {"resultJson": json.dumps(json.dumps(text))},
        {"resultJson": json.dumps(listed)},
        {"resultJson": {"resultUrls": json.dumps(listed)}},
        {"resultJson": {"result_urls": listed}},
        {"resultJson": {"urls": listed}},
        {"resultJson": {"resultUrls": [{"resultUrl": url} for url in urls]}},
        {"resultJson": {"resultUrls": [{"url": url} for url in urls]}},
        {"resultInfoJson": {"resultUrls": [{"resultUrl": url} for url in urls]}},
        {"info": objects},
        {"result": objects},
        {"result_urls": listed},
        {"resultUrls": listed},
        {"response": {"resultUrls": None, "originUrls": listed}},
        {"response": {"output": {"deeper": [{"file": url} for url in urls]}}},
        {"response": {"data": [{"audio_url": url} for url in urls]}},
        {"resultJson": {"resultUrls": [f" \n{url}\t" for url in urls]}},
        {"resultJson": text.replace("}", ',"score":NaN}')},
    ]


FOUND = Becomes(urls=URLS)
RECORDS: list[Row] = [
    *(Row("record: where a job keeps its URLs", job("success", **f), FOUND) for f in shapes(URLS)),
    *(
        Row("record: where a flagged record keeps its URLs", flag(1, **f), FOUND, ("veo3",))
        for f in shapes(URLS)
    ),
    *(
        Row("record: of Midjourney, the same", flag(1, **f), FOUND, ("midjourney",))
        for f in shapes(URLS)[::3]
    ),
    Row(
        "record: what is read first",
        job(
            "success",
            response={"resultUrls": [URL]},
            resultJson='{"resultUrls":["https://old.example/"]}',
        ),
        Becomes(urls=(URL,)),
        JOBS,
    ),
    *(
        Row(
            "record: a URL on its own",
            job("success", response={"resultUrls": [given]}),
            Becomes(urls=(kept,)),
        )
        for given, kept in (
            ("HTTPS://x.example/a.png", "HTTPS://x.example/a.png"),
            (f"\ufeff{URL}", URL),
            (f"{URL}#t=1", f"{URL}#t=1"),
            ("https://x.example/a%20b(1).png", "https://x.example/a%20b(1).png"),
            ("https://例え.example/猫.png", "https://例え.example/猫.png"),
            (f'"{URL}"', URL),
        )
    ),
    *(
        Row(
            "record: many URLs",
            job("success", response={"resultUrls": urls[:n]}),
            Becomes(urls=urls[:n]),
        )
        for n, urls in ((150, THOUSAND), (1_000, THOUSAND))
    ),
    *(
        Row(
            "record: several URLs in one text",
            job("success", resultJson={"resultUrls": text}),
            Becomes(urls=("https://x.example/1.png", "https://x.example/2.png")),
        )
        for text in (
            "[https://x.example/1.png, https://x.example/2.png]",
            "https://x.example/1.png,https://x.example/2.png",
            "https://x.example/1.png\nhttps://x.example/2.png",
        )
    ),
    *(
        Row("record: data in another form", j({"code": 200, "data": data}), Becomes(urls=(URL,)))
        for record in ({"taskId": "@ID", "state": "success", "response": {"resultUrls": [URL]}},)
        for data in (record, [record], json.dumps(record), json.dumps(json.dumps(record)))
    ),
    *(
        Row(
            "record: the id in another form",
            job("success", taskId=name, response=[URL]),
            Becomes(urls=(URL,)),
        )
        for name in ("@UPPER", " @ID\n", None, 7, {"id": "@ID"})
    ),
    *(
        Row("record: text that JSON forbids", Http(text), Becomes(urls=(URL,)))
        for text in (
            GOOD_RECORD.encode().replace(b"ok", b"\xe7\x8c"),
            GOOD_RECORD.replace("ok", "a\nb"),
            GOOD_RECORD.replace('"ok"', "NaN").replace("1", "Infinity"),
            "\ufeff" + GOOD_RECORD,
        )
    ),
    *(
        Row(
            "record: HTTP around a good answer",
            Http(GOOD_RECORD, **http),
            Becomes(urls=(URL,)),
        )
        for http in (
            {"headers": (("X-Long", "x" * 9_000),)},
            {"announced": 4_000},
            {"announced": 4_000, "stays_open": True},
            {"status": 206},
        )
    ),
    Row(
        "record: a large one",
        job("success", response={"resultUrls": [URL]}, noise="x" * (2 << 20)),
        Becomes(urls=(URL,)),
    ),
    *(
        Row(
            "record: credits",
            job("success", response=[URL], **fields),
            Becomes(urls=(URL,), credits=cost),
        )
        for fields, cost in (
            ({"creditsConsumed": 4.5}, 4.5),
            ({"creditsConsumed": "12.25"}, 12.25),
            ({"consumeCredits": 3}, 3.0),
            ({"creditsConsumed": 0}, 0.0),
        )
    ),
    *(
        Row(
            "record: a failure",
            answer,
            Becomes("GENERATION_FAILED", words=words, code=code),
            families,
        )
        for answer, words, code, families in (
            (job("fail", failCode="422", failMsg="so bad"), "so bad", "422", JOBS),
            (job("fail", failCode=500, failMsg="so bad"), "so bad", "500", JOBS),
            (job("fail", failCode=None, errorCode=7, errorMessage="so bad"), "so bad", "7", JOBS),
            (flag(2, errorCode=400, errorMessage="so bad"), "so bad", "400", FLAGS),
            (flag(3, errorCode=500, errorMessage="so bad", response=None), "so bad", "500", FLAGS),
            (says(501, "so bad"), "so bad", "501", FAMILIES),
            (says(400, "so bad"), "so bad", "400", FLAGS),
            (says(451, "so bad"), "so bad", "451", FLAGS),
            (says(422, "Your request was rejected by Flow"), "rejected", "422", FLAGS),
            (job(None, successFlag=3, errorMessage="so bad"), "so bad", "", JOBS),
        )
    ),
    *(
        Row(
            "record: a success without a URL",
            answer,
            Becomes("RESULT_MISSING", kept=kept),
            families,
        )
        for answer, kept, families in (
            (job("success", resultJson=None, odd="kept-1"), "kept-1", JOBS),
            (job("success", resultJson='{"resultObject":{"text":"kept-2"}}'), "kept-2", JOBS),
            (flag(1, response=None, odd="kept-3"), "kept-3", ("veo3",)),
            (flag(1, resultInfoJson={"resultUrls": []}, odd="kept-4"), "kept-4", ("midjourney",)),
            (
                job(
                    "success",
                    param='{"callBackUrl":"https://us.example/callbacks/kie/1/seal","a":"kept-5"}',
                ),
                "kept-5",
                JOBS,
            ),
        )
    ),
]

# Answers without a verdict: given twice, followed by a success. (kind, answer, cause)
INCONCLUSIVE: list[tuple[str, Http, str]] = [
    *(
        ("record: this task cannot be read", answer, "unreadable")
        for answer in (
            says(422, "recordInfo is null"),
            says(404, "Task not found"),
            says(408, "No result has been returned for over 10 minutes"),
            says(500, "Server exception"),
            says(505, "disabled"),
            says(999, "what"),
            says(200, "success"),
            says(200, "success", "text"),
            says(200, "success", {}),
            j({"code": 200, "data": {"taskId": "another", "state": "success", "response": [URL]}}),
            Http("<h1>404</h1>", status=404),
            Http('{"code":200,"data":{"state":"succ'),
            Http("garbage"),
        )
    ),
    *(
        ("record: the provider is unavailable", answer, "unavailable")
        for answer in (
            says(401, "no access"),
            says(402, "Credits insufficient"),
            says(403, "no"),
            says(429, "too many"),
            says(430, "Your call frequency is too high"),
            says(433, "cap"),
            says(455, "maintenance"),
            says(500, "The service is under maintenance"),
            Http("<h1>502</h1>", status=502),
            Http("", status=503),
            Http("error code: 1010", status=403),
            Http("<html>maintenance</html>"),
            Http(""),
            Http("moved", status=301),
        )
    ),
    *(
        ("record: a state that nobody knows", answer, "unknown_state")
        for answer in (job("archived"), job("SUCCESS"), job(7), job({"a": 1}))
    ),
]

# An orphan's record repeats our prompt, more or less: (how, what it repeats).
ECHOES: list[tuple[str, str]] = [
    ("word for word", '"@PROMPT"'),
    ("in Unicode's composed form", '"@NFC"'),
    ("in Unicode's compatible form", '"@NFKC"'),
    ("escaped for HTML", '"@HTML"'),
    ("escaped for HTML twice", '"@HTML2"'),
    ("in capitals", '"@CAPITALS"'),
    ("with other blanks", '"  @PROMPT   "'),
    ("cut", '"@CUT"'),
    ("cut, with dots", '"@CUT..."'),
    ("not at all", "null"),
]

# --- uploads ---

UPLOADS: list[tuple[str, Http, str]] = [
    ("upload: refused by its number", says(400, "bad"), "PROVIDER_REJECTED"),
    ("upload: refused by its number", says(401, "no"), "PROVIDER_UNAUTHORIZED"),
    ("upload: refused by its number", says(402, "no"), "CREDITS_EXHAUSTED"),
    ("upload: too large", says(413, "no"), "UPLOAD_TOO_LARGE"),
    ("upload: too large", Http("no", status=413), "UPLOAD_TOO_LARGE"),
    ("upload: refused by its words", says(500, "Credits insufficient"), "CREDITS_EXHAUSTED"),
    ("upload: refused by its words", says(500, "余额不足"), "CREDITS_EXHAUSTED"),
    ("upload: refused by its words", says(500, "uploadPath is required"), "PROVIDER_REJECTED"),
    ("upload: refused by its words", says(500, "uploadPath 不能为空"), "PROVIDER_REJECTED"),
    ("upload: unavailable", says(500, "Internal server error"), "PROVIDER_UNAVAILABLE"),
    ("upload: unavailable", says(455, "maintenance"), "PROVIDER_UNAVAILABLE"),
    ("upload: unavailable", says(429, "too many"), "PROVIDER_UNAVAILABLE"),
    ("upload: unavailable", says(500, "under maintenance"), "PROVIDER_UNAVAILABLE"),
    ("upload: unavailable", Http("<p>502</p>", status=502), "PROVIDER_UNAVAILABLE"),
    ("upload: taken", says(200, "ok", {"downloadUrl": URL}), ""),
    ("upload: taken", Http('\ufeff{"code":200,"x":NaN,"data":{"downloadUrl":"' + URL + '"}}'), ""),
]
