"""From the code and the message of a response to a reason: one table for all of Kie's APIs.

The message says more than the code: a withdrawn model is a 422, an empty account may be a 500. It
is matched against the provider's known sentences, after quotations are removed: a quoted prompt may
mention credits and models, too.
"""

import re
from html import unescape
from itertools import takewhile

# Not a reason: nothing was bought, and the same request may be sent again later.
TRY_LATER = "TRY_LATER"
OVER_LIMIT_CODES = frozenset({429, 430})  # the second is Suno's
TRY_LATER_CODES = OVER_LIMIT_CODES | {455}  # maintenance
PAYLOAD_TOO_LARGE = 413

REASONS_BY_CODE = {
    **dict.fromkeys((400, 404, 413, 422, 451), "PROVIDER_REJECTED"),
    **dict.fromkeys((401, 403), "PROVIDER_UNAUTHORIZED"),
    **dict.fromkeys((402, 433), "CREDITS_EXHAUSTED"),
    **dict.fromkeys(TRY_LATER_CODES, TRY_LATER),
    505: "MODEL_UNAVAILABLE",
}
# Codes that are unambiguous, whatever the message says.
CLEAR_CODES = frozenset({401, 402, 403, 433})
# Any other task would be refused, too.
ACCOUNT_REASONS = frozenset({"PROVIDER_UNAUTHORIZED", "CREDITS_EXHAUSTED"})


def _sentences(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# A paused model, with any code.
PAUSED = _sentences(
    r"temporarily (?:paused|suspended|disabled|unavailable for use)",
    "暂停(?:服务|使用)",
)
# The first match decides, unless the code is unambiguous.
SENTENCES = (
    (
        "CREDITS_EXHAUSTED",
        _sentences(
            r"\b(?:credits?|balance|funds|quota)\b[^.,;:!?]{0,30}? (?:insufficient|too low|depleted"
            r"|exhausted|used up|not (?:enough|sufficient)|(?:is|are)n't (?:enough|sufficient))\b",
            r"\binsufficient (?:account )?(?:credits?|balance|funds|quota)\b",
            r"\b(?:not enough|(?:run|ran) out of|no (?:more |remaining )?) ?(?:credits?|balance)\b",
            r"\b(?:do(?:es)? not|don't|doesn't) have (?:enough|sufficient) (?:credits?|balance)\b",
            r"\bplease (?:top up|recharge)\b",
            r"\b(?:top up|recharge) your (?:account|credits?|balance)\b",
            "(?:余额|积分|额度|点数|算力|账户)(?:已)?(?:不足|不够|用完|用尽|耗尽)",
            "(?:余额|积分|额度|点数)为零|欠费|请充值",
        ),
    ),
    (
        "PROVIDER_REJECTED",  # by one model; another one may accept it
        _sentences(
            r"\b(?:not supported|unsupported|not available|invalid|not allowed)"
            r" (?:by|for|with|in|on) (?:this|the|that|your)(?: \w+)? model\b",
            r"\bmodel (?:does not|doesn't|cannot|can't) (?:support|accept|take|use|handle)\b",
            r"\b(?:for|by|with|of|in) (?:this|the|that)(?: \w+)? model (?:is|are) (?:not|un|in)",
        ),
    ),
    (
        "MODEL_UNAVAILABLE",
        _sentences(
            r"\bmodels?\b[^.,;:!?]{0,80}? (?:is|are|was|has been|have been)"
            r" (?:currently |now |no longer |temporarily )?"
            r"(?:not (?:supported|available|published|found|recogni[sz]ed|enabled|valid|online)"
            r"|unsupported|unavailable|supported|available|offered|deprecated|retired|withdrawn"
            r"|disabled|removed|offline|discontinued|sunset|shut ?down|invalid|unknown)\b",
            r"\bmodels?\b[^.,;:!?]{0,80}? (?:not (?:supported|found|available)"
            r"|does(?: not|n't) exist)\b",
            r"\b(?:unsupported|unknown|no such|invalid) model\b(?! (?:parameter|input|option))",
            r"\bpage does(?: not|n't) exist\b|\bpage not published\b|\bis not published\b",
            "模型[^\uff0c。\uff1b]{0,40}?(?:不存在|不支持|下线|未发布|不可用|停用|弃用)",
            "(?:不支持|未知|无效)的?(?:该|此)?模型|页面不存在|未发布",
        ),
    ),
    (
        TRY_LATER,
        _sentences(
            r"\b(?:under|in|undergoing|for|scheduled|system) maintenance\b|\bbeing maintained\b",
            "维护中|正在维护|系统维护",
        ),
    ),
    (
        "PROVIDER_REJECTED",
        _sentences(
            r"\b(?:is|are) (?:a )?(?:required|mandatory|missing)\b",
            r"\brequired (?:field|parameter)\b",
            r"\bmissing (?:a |the )?(?:required )?(?:field|parameter|argument|property)",
            r"\bnot (?:with)?in the (?:range|list|set) of (?:the )?"
            r"(?:allowed|valid|supported|permitted)\b",
            r"\bnot (?:one of|among|in) the (?:allowed|valid|supported|permitted)\b",
            r"\b(?:is|are) not (?:a |an )?(?:valid|allowed|permitted|supported)\b",
            r"\b(?:invalid|illegal|wrong|bad) (?:value|parameter|argument|input|request|format"
            r"|type|option|enum|aspect|url|image)",
            r"\b(?:cannot|can not|can't|must not|may not|should not) be"
            r" (?:empty|null|blank|none)\b",
            r"\bmust (?:be (?:one of|between|at (?:least|most)|a|an|less|greater|either)"
            r"|not exceed|match|contain)\b",
            r"\b(?:exceeds?|exceeded|longer than|larger than|greater than|over|beyond) the"
            r" (?:maximum|allowed|limit of|max)\b",
            r"\bout of (?:the )?(?:allowed )?range\b|\bparameter (?:error|validation)\b",
            r"\b(?:validation|verification) (?:failed|error)\b|\bfailed validation\b",
            "不能为空|不可为空|为必填|必填(?:项|字段|参数)?|缺少(?:必要|必填|必需)?的?参数",
            "参数(?:错误|有误|无效|不合法|非法|校验失败|格式)|取值(?:范围|无效|错误)",
            "不在(?:允许|可选|有效|支持|取值)的?(?:取值)?(?:范围|选项|列表)",
            "超出(?:范围|最大|限制|长度)|格式(?:错误|不正确|有误)|不合法",
        ),
    ),
)

# Text in quotation marks. Inside a word, a straight single quote is an apostrophe.
QUOTED = re.compile(
    r"\"[^\"]*\"|“[^”]*”|\u2018[^\u2019]*\u2019|「[^」]*」|『[^』]*』|《[^》]*》|`[^`]*`"
    r"|(?<!\w)'[^']*'(?!\w)"
)
ECHO_MIN_CHARACTERS = 10  # a shorter prompt may also be a word of the provider


def reason_of(code: int, message: str, *, prompt: str = "") -> str:
    """Return the name of an ErrorReason, or TRY_LATER, for a refusal.

    Args:
        code: The envelope's code, or the HTTP status where there is no envelope.
        message: The provider's message.
        prompt: The prompt of our request, which the message may quote.
    """
    words = _own_words(message, prompt)
    if PAUSED.search(words):
        return "MODEL_UNAVAILABLE"
    by_code = REASONS_BY_CODE.get(code, "PROVIDER_ERROR")
    if code in CLEAR_CODES:
        return by_code
    said = next((reason for reason, sentence in SENTENCES if sentence.search(words)), by_code)
    # An exceeded limit is not an error in the parameters, whatever the message resembles.
    return said if code not in TRY_LATER_CODES or said == "CREDITS_EXHAUSTED" else by_code


def upload_reason(code: int, message: str) -> str:
    """Return the name of an ErrorReason for a file that was not accepted."""
    if code == PAYLOAD_TOO_LARGE:
        return "UPLOAD_TOO_LARGE"
    reason = reason_of(code, message)
    server_error = reason == "PROVIDER_ERROR" and code // 100 == 5  # noqa: PLR2004 - a class of HTTP
    return "PROVIDER_UNAVAILABLE" if server_error or reason == TRY_LATER else reason


def _own_words(message: str, prompt: str) -> str:
    """Return the message without quotations, unless nothing remains."""
    text = " ".join(unescape(message).split())
    left = QUOTED.sub(" ", _without_echo(text, " ".join(prompt.split())))
    return left if any(map(str.isalnum, left)) else text


def _without_echo(text: str, prompt: str) -> str:
    """Remove the prompt, or as much of its beginning as the message contains."""
    folded, echo = text.lower(), prompt.lower()
    if len(echo) < ECHO_MIN_CHARACTERS or len(folded) != len(text):
        return text
    start = folded.find(echo[:ECHO_MIN_CHARACTERS])
    if start < 0:
        return text
    pairs = zip(folded[start:], echo, strict=False)
    quoted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return f"{text[:start]} {text[start + quoted :]}"
