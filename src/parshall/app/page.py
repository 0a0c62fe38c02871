"""The plain page at `/`: what runs here and where to go."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parshall</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 42rem; margin: 4rem auto; padding: 0 1.2rem; }}
  h1 {{ font-weight: 600; margin-bottom: 0; }}
  .version {{ color: GrayText; margin-top: 0; }}
  li {{ margin: .3rem 0; }}
  code {{ font-size: .92em; }}
</style>
<h1>Parshall</h1>
<p class="version">version {version}</p>
<p>Metered AI streams: this server keeps users, chat sessions and prepaid credits, streams answers as
Server-Sent Events, and charges exactly what was used.</p>
<ul>
  <li><a href="/docs">API documentation</a>, and the <a href="/openapi.json">OpenAPI document</a> behind it</li>
  <li><a href="/health">Health</a> of this server</li>
  <li>Guides are in the <code>docs/</code> folder of the source: start with <code>README.md</code>,
      then <code>docs/PROTOCOL.md</code></li>
  <li>A chat in the terminal: <code>parshall chat</code></li>
</ul>
</html>
"""


def home_page(*, version: str) -> str:
    """The page as HTML."""
    return _PAGE.format(version=version)
