"""Make the README's pictures of the attention page: the demo's first sentence, padded, without the mask.

Run: .venv/bin/python scripts/screenshot.py (needs Chromium)
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from minibert import DEMO, DistilBertForSequenceClassification, DistilBertTokenizer
from minibert.study import attention_page
from minibert.study.walk import SENTENCES

IMAGES = Path(__file__).parents[1] / ".github" / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1400,560"
).split()
KEYS = ("ArrowRight", "ArrowRight", "ArrowRight")  # to head 3
PRESS = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}));"


def main() -> None:
    """Write the page, press the keys, and save a picture of a light screen and of a dark one."""
    model = DistilBertForSequenceClassification.from_pretrained(DEMO)
    page = attention_page(model, DistilBertTokenizer.from_pretrained(DEMO), SENTENCES, title="Attention: demo")
    keys = "".join(PRESS % key for key in KEYS)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "attention.html")
        file.write_text(page.replace("</body>", f"<script>{keys}</script></body>"), encoding="utf-8")
        for scheme, number in (("dark", 0), ("light", 1)):
            image = IMAGES / f"attention-{scheme}.png"
            own = [f"--user-data-dir={folder}/{scheme}", f"--blink-settings=preferredColorScheme={number}"]
            command = [CHROMIUM, *FLAGS, *own, f"--screenshot={image}", file.as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            print(image)


if __name__ == "__main__":
    main()
