"""A reader who has a keyboard and nothing else: goes on with Tab, and sees at every stop where the focus is."""

from playwright.sync_api import Locator, Page

MOST_STOPS = 250  # between two things that a reader wants: whoever presses Tab more often has given up

# Whether what has the focus is seen to have it: inside the window, with a ring. A hidden file input has its label's.
RING = """() => {
  const focused = document.activeElement;
  if (focused === document.body) return "";
  const shown = focused.matches(".drop input[type=file]") ? focused.closest("label") : focused;
  const style = getComputedStyle(shown), box = shown.getBoundingClientRect();
  const seen = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth && box.width > 1;
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
  return seen && ring ? "" : `${focused.outerHTML.slice(0, 200)}: seen ${seen}, ring ${ring}`;
}"""


class Keyboard:
    """The keys of a page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.stops = 0

    def press(self, *keys: str) -> None:
        for key in keys:
            self._page.keyboard.press(key)

    def write(self, text: str) -> None:
        self._page.keyboard.type(text)

    def skip(self) -> None:
        """Leave the head of a page that was just opened behind by its first link."""
        self.press("Tab")
        assert self._page.evaluate("document.activeElement.className") == "skip"
        self._check_seen()
        self.press("Enter")

    def go_to(self, wanted: Locator, back: bool = False) -> None:
        """Press Tab until this has the focus."""
        for _ in range(MOST_STOPS):
            self.press("Shift+Tab" if back else "Tab")
            self.stops += 1
            self._check_seen()
            if wanted.evaluate("one => one === document.activeElement"):
                return
        raise AssertionError(f"{wanted} is not reached with {MOST_STOPS} stops")

    def _check_seen(self) -> None:
        unseen = self._page.evaluate(RING)
        assert unseen == "", unseen

    def choose(self, value: str) -> None:
        """Go down the list that has the focus until it has this value."""
        value_now = "document.activeElement.value"
        self.press("Home")
        for _ in range(100):
            if self._page.evaluate(value_now) == value:
                return
            self.press("ArrowDown")
        raise AssertionError(f"{value} is not in the list, which has {self._page.evaluate(value_now)}")
