"""One line when the Hub does not answer, where huggingface_hub prints two for each of its retries."""

import logging
import sys

RETRIES = "huggingface_hub.utils._http"  # the logger of http_backoff: what failed, then "Retrying in 4s [Retry 3/5]."


class SayOnce(logging.Filter):
    """Lets no warning about a retry through; the first one is replaced by a line of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.said = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not ("thrown while requesting" in text or text.startswith("Retrying in")):
            return True
        if not self.said:
            print("negpo: the Hub does not answer; trying again for some seconds", file=sys.stderr)
        self.said = True
        return False


def quiet_retries() -> None:
    """Once per process."""
    logger = logging.getLogger(RETRIES)
    if not any(isinstance(known, SayOnce) for known in logger.filters):
        logger.addFilter(SayOnce())
