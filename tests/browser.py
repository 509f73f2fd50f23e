"""A real browser without a screen: opens a page, runs a script in it, hears its console."""

import json
import os
import re
import shutil
import subprocess
from html import unescape

NAMES = (os.environ.get("CHROMIUM", ""), "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def look(page, script="", width=1400, height=1000, dark=False):
    """What `script` (a JavaScript expression, awaited) gives in that page, and what the browser's console said."""
    found = next(filter(None, map(shutil.which, filter(None, NAMES))), None)
    assert found, "no Chromium here: bash scripts/system.sh browser installs one, or name yours: CHROMIUM=/path"
    asked = page.with_name(f"asked-{width}.html")
    ask = f"""<script>window.addEventListener("load", async () => {{
      const out = document.createElement("pre");
      out.id = "answer";
      try {{ out.textContent = JSON.stringify(await ({script or "null"})); }}
      catch (error) {{ console.error(error); }}
      document.body.append(out);
    }});</script>"""
    asked.write_text(page.read_text().replace("</body>", ask + "</body>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--window-size={width},{height}",
    ]
    flags += ["--virtual-time-budget=5000", "--dump-dom"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    ran = subprocess.run([found, *flags, asked.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    answer = re.search(r'<pre id="answer">(.*?)</pre>', ran.stdout, re.DOTALL)
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(answer[1])) if answer else None, console
