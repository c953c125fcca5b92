"""Measure the layout of a page in Chromium, by a script inside the page."""

import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Replaces the page with the measured layout.
PROBE = """<script>
addEventListener("load", () => {
  const shown = e => e.getBoundingClientRect();
  document.body.innerHTML = "<pre id=probe>" + JSON.stringify({
    images: [...document.images].map(e => [e.naturalWidth, shown(e).width, shown(e).right]),
    tables: [...document.querySelectorAll("table")].map(e => [e.rows.length, shown(e).height]),
    width: document.documentElement.clientWidth, needed: document.documentElement.scrollWidth,
  }) + "</pre>";
});
</script></body>"""


def probe(text: str, folder: Path, width: int) -> dict[str, object]:
    """Return the layout of a page in a Chromium window of a width in pixels."""
    path = folder / "probed.html"
    without_rule = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    path.write_text(without_rule.replace("</body>", PROBE))
    assert CHROMIUM is not None
    output = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", path.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    match = re.search(r'<pre id="probe">(.*?)</pre>', output, re.DOTALL)
    assert match, output[-500:]
    found: dict[str, object] = json.loads(match[1])
    return found
