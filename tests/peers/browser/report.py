"""The report of `smq-inspect --html` in headless Chromium: sorted, hovered over, and scrolled.

Ends with 0 where every check held, 1 where one failed, 2 where nothing was checked.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Widths in CSS pixels: a desktop, half of one, a phone.
WIDTHS = (1280, 600, 390)
PHONE = 390
HEIGHT = 900
LEGIBLE_PX = 10.0
SORTED_AT_FIRST = "rel MSE"

# Every text of the figures: its size on the screen, whether the figure cuts it, and what it covers.
TEXTS = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const scale = frame.width / svg.viewBox.baseVal.width;
  const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim());
  // A line's box is higher than its letters.
  const box = t => {
    const r = t.getBoundingClientRect();
    const [x, y] = r.width < r.height ? [0.2 * r.width, 0] : [0, 0.2 * r.height];
    return { left: r.left + x, right: r.right - x, top: r.top + y, bottom: r.bottom - y };
  };
  const boxes = texts.map(box);
  const meet = (a, b) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  return texts.map((t, i) => ({
    text: t.textContent.trim(),
    figure: svg.getAttribute("aria-label"),
    size: parseFloat(getComputedStyle(t).fontSize) * scale,
    cut: boxes[i].left < frame.left - 1 || boxes[i].right > frame.right + 1
      || boxes[i].top < frame.top - 1 || boxes[i].bottom > frame.bottom + 1,
    covers: boxes.flatMap(
      (b, j) => j > i && meet(boxes[i], b) ? [texts[j].textContent.trim()] : []),
  }));
})"""

# The points of a figure: where on the screen, the tooltip's text, and whether a dot is drawn there.
POINTS = """figure => {
  const centre = shape => {
    const box = shape.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const drawn = [...figure.querySelectorAll("circle, polygon")]
    .filter(shape => !shape.closest(".marks")).map(centre);
  return [...figure.querySelectorAll(".marks circle")].map(mark => {
    const [x, y] = centre(mark);
    const dot = drawn.some(at => Math.hypot(at[0] - x, at[1] - y) < 3);
    return [x, y, mark.dataset.tip, dot];
  });
}"""

ROWS = """() => [...document.querySelectorAll("#tensors tbody tr")].map(row =>
  [...row.cells].map(c => ({ text: c.textContent, value: c.dataset.v ?? null })))"""


class Checks:
    """Counts what held, and prints what did not."""

    def __init__(self):
        self.held = 0
        self.failed = 0

    def __call__(self, holds, what):
        if holds:
            self.held += 1
        else:
            self.failed += 1
            print(f"FAILED: {what}")


def nothing_checked(why):
    print(f"NOTHING WAS CHECKED: {why}", file=sys.stderr)
    sys.exit(2)


def browser():
    named = os.environ.get("CHROMIUM")
    for candidate in (named,) if named else BROWSERS:
        found = shutil.which(candidate)
        if found:
            return found
    sought = named or ", ".join(BROWSERS)
    nothing_checked(f"no Chromium here ({sought}); install it, or name one in CHROMIUM")


def program(programs, name):
    path = programs / name
    if not path.is_file():
        nothing_checked(f"{path} is missing; build it with: cargo build --release -p smq-convert")
    return path


def make_report(options, work):
    """The page, of the file that was asked for or of the fixture."""
    programs = options.programs
    smq = options.smq
    if smq is None:
        smq = work / "phi3.smq"
        fixture = REPOSITORY / "tests/fixtures/phi3-tiny"
        converter = program(programs, "smq-convert")
        convert = [converter, fixture, smq, "--mbits", "5", "--target", "all"]
        subprocess.run(convert, check=True, capture_output=True)
    page = work / "report.html"
    inspect = [program(programs, "smq-inspect"), smq, "--html", page]
    subprocess.run(inspect, check=True, capture_output=True)
    return page


def natural(text):
    """The order of names as the page has it: runs of digits are numbers, case does not count."""
    parts, digits = [], ""
    for c in text.lower() + "\0":
        if c.isdigit():
            digits += c
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        # Punctuation comes before digits and letters.
        parts.append((1 if c.isalpha() else -1, 0, c))
    return parts


def sorted_by(rows, column, descending):
    cells = [row[column] for row in rows]
    if cells[0]["value"] is None:
        keys = [natural(c["text"]) for c in cells]
    else:
        keys = [float(c["value"]) for c in cells]
    return keys == sorted(keys, reverse=descending)


def check_sorting(page, check):
    heads = page.locator("#tensors th").all()
    names = [h.inner_text().strip(" \u2191\u2193") for h in heads]
    at_first = names.index(SORTED_AT_FIRST)
    rows = page.evaluate(ROWS)
    check(sorted_by(rows, at_first, True), f"the table begins with the largest {SORTED_AT_FIRST}")
    everything = sorted(str(r) for r in rows)
    for column, (name, head) in enumerate(zip(names, heads)):
        before = head.get_attribute("aria-sort")
        for _ in range(2):
            head.locator("button").click()
            order = head.get_attribute("aria-sort")
            check(order in ("ascending", "descending"), f"{name}: aria-sort is {order}")
            check(order != before, f"{name}: a click does not turn the order {before}")
            before = order
            rows = page.evaluate(ROWS)
            check(sorted_by(rows, column, order == "descending"), f"{name} is not {order}")
            check(sorted(str(r) for r in rows) == everything, f"{name}: rows were lost")
        marked = page.locator("#tensors th[aria-sort]").count()
        check(marked == 1, f"{name}: {marked} columns are marked as sorted by")


def shown(page):
    """The tooltip's lines, or none where it is hidden."""
    tip = page.locator("#tip")
    return tip.inner_text().split("\n") if tip.is_visible() else []


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def settle(page):
    """Two frames, so that a scroll's events, which hide the tooltip, are over."""
    page.evaluate("() => new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")


def check_points(page, check):
    """Each point names its tensor, with the error that the table has for it."""
    table = {row[0]["text"]: row for row in page.evaluate(ROWS)}
    heads = page.locator("#tensors th").all()
    error = [head.inner_text().strip(" \u2191\u2193") for head in heads].index(SORTED_AT_FIRST)
    for label in ("mean relative MSE by layer", "mean relative MSE by projection"):
        figure = page.locator(f'svg[aria-label="{label}"]')
        figure.scroll_into_view_if_needed()
        settle(page)
        places = []
        points = figure.evaluate(POINTS)
        check(len(points) > 0, f"{label}: no points")
        for x, y, tip, dot in points:
            check(dot, f"{label}: no dot is drawn where the tooltip says {tip!r}")
            page.mouse.move(x + 1, y + 1)
            lines = shown(page)
            name = lines[0] if lines else None
            check(name in table, f"{label}: at a point the tooltip says {lines}")
            if name not in table:
                continue
            value = table[name][error]
            check(lines[1].endswith(f" {value['text']}"), f"{label}: {lines}, the table {value}")
            places.append((x if "projection" in label else -y, float(value["value"])))
            own = tip.split("\n")[0]
            near = [p for p in points if abs(p[0] - x) + abs(p[1] - y) < 4]
            check(own == name or len(near) > 1, f"{label}: {own} is shown as {name}")
        # A larger error lies further along the axis, to within a pixel and the pointer's choice.
        places.sort(key=lambda p: p[1])
        along = all(b[0] - a[0] > -4 for a, b in zip(places, places[1:]))
        check(along, f"{label}: points do not lie in the order of their errors")
        corner = figure.bounding_box()
        page.mouse.move(corner["x"] + 2, corner["y"] + 2)
        check(not shown(page), f"{label}: a tooltip far from any point")


def check_other_marks(page, check):
    """Bars and the map of rows."""
    for label, words in (
        ("stored scales by exponent", "scales of exponent"),
        ("cost of the scale format", "with exact scales"),
    ):
        figure = page.locator(f'svg[aria-label="{label}"]')
        if figure.count() == 0:
            continue
        figure.scroll_into_view_if_needed()
        settle(page)
        page.mouse.move(*centre(figure.locator(".marks *").first))
        lines = shown(page)
        check(len(lines) == 2 and words in lines[1], f"{label}: the tooltip says {lines}")
    names = {row[0]["text"] for row in page.evaluate(ROWS)}
    line = page.locator('svg[aria-label="mean relative MSE by block of rows"] .marks rect').first
    line.scroll_into_view_if_needed()
    settle(page)
    cells = line.get_attribute("data-cells").split(" ")
    box = line.bounding_box()
    for cell in {0, len(cells) // 2, len(cells) - 1}:
        x = box["x"] + box["width"] * (cell + 0.5) / len(cells)
        page.mouse.move(x, box["y"] + box["height"] / 2)
        lines = shown(page)
        wanted = f"block of rows {cell + 1} of {len(cells)}: {cells[cell]}"
        check(bool(lines) and lines[0] in names, f"map of rows: the tooltip says {lines}")
        check(wanted in lines, f"map of rows: {lines} in place of {wanted}")
    page.mouse.move(1, 1)
    check(not shown(page), "the tooltip stays after the pointer has left the figure")


def check_width(page, check, width):
    size = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    check(size[0] <= size[1], f"at {width} px the page is {size[0]} px wide")
    for t in page.evaluate(TEXTS):
        what = f"at {width} px, {t['figure']}: {t['text']!r}"
        check(t["size"] >= LEGIBLE_PX, f"{what} is {t['size']:.1f} px high")
        check(not t["cut"], f"{what} sticks out of the figure")
        check(not t["covers"], f"{what} covers {t['covers']}")


def check_phone(page, check):
    """The table scrolls sideways, the page does not, and the names stay in sight."""
    table = page.locator(".wide:has(#tensors)")
    table.scroll_into_view_if_needed()
    settle(page)
    widths = table.evaluate("e => [e.scrollWidth, e.clientWidth]")
    check(widths[0] > widths[1], f"the table has nothing to scroll: {widths}")
    # An element higher than the window has its centre out of sight.
    first = table.locator("tbody td").first
    first.scroll_into_view_if_needed()
    settle(page)
    page.mouse.move(*centre(first))
    page.mouse.wheel(200, 0)
    page.wait_for_timeout(500)
    moved = table.evaluate("e => e.scrollLeft")
    check(moved > 100, f"the wheel moved the table by {moved} px")
    page_moved = page.evaluate("() => scrollX")
    check(page_moved == 0, f"the page scrolled sideways by {page_moved} px")
    box = first.bounding_box()
    check(0 <= box["x"] < PHONE, f"the names are out of sight, at {box['x']} px")
    # What overflows the window, other than what scrolls by itself.
    page.evaluate("() => scrollTo(1000, scrollY)")
    check(page.evaluate("() => scrollX") == 0, "the page can be scrolled sideways")


def check_touch(page, check):
    point = page.locator(".marks circle").first
    point.scroll_into_view_if_needed()
    settle(page)
    page.touchscreen.tap(*centre(point))
    settle(page)
    check(bool(shown(page)), "a touched point has no tooltip once the finger is lifted")
    page.locator("h2").first.tap()
    check(not shown(page), "the tooltip stays after a touch elsewhere")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smq", type=Path, help="a .smq file in place of the fixture's")
    programs = REPOSITORY / "target/release"
    parser.add_argument("--programs", type=Path, default=programs, help="where the programs are")
    parser.add_argument("--screenshots", type=Path, help="a directory for a picture of each width")
    options = parser.parse_args()
    chromium = browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        nothing_checked("the package playwright is missing; pip install playwright")
    check = Checks()
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        report = make_report(options, Path(work))
        context = playwright.chromium.launch_persistent_context(
            f"{work}/profile",
            executable_path=chromium,
            headless=True,
            args=list(ARGUMENTS),
            has_touch=True,
            viewport={"width": WIDTHS[0], "height": HEIGHT},
        )
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: asked.append(r.url))
        page.goto(report.as_uri())
        check_points(page, check)
        check_other_marks(page, check)
        check_sorting(page, check)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT})
            page.reload()
            check_width(page, check, width)
            if options.screenshots:
                options.screenshots.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=options.screenshots / f"{width}.png", full_page=True)
        check_phone(page, check)
        check_touch(page, check)
        check(not said, f"the page complained: {said}")
        check(set(asked) == {report.as_uri()}, f"the page asked for {set(asked)}")
        context.close()
    print(f"{check.held} checks held, {check.failed} failed (Chromium at {chromium})")
    return 1 if check.failed or not check.held else 0


if __name__ == "__main__":
    sys.exit(main())
