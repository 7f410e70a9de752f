"""A preview as one picture: the same samples as in HTML, the longest ones cut."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from voco_llama.data_tools.preview.sample import KINDS, Entry, Failure, Sample, printable

WIDTH, MARGIN, GAP = 1600, 24, 16
FONT_SIZE, TITLE_SIZE, LINE, SMALL_LINE = 14, 16, 22, 19
COLUMN = 320
"""Width of the column of pictures, and of the mask's."""
PICTURES_A_LINE, PICTURES_DRAWN = 2, 8
MOST_LINES = 36
"""Of a sample's tokens."""
INK, PALE, WRONG = (30, 30, 30), (110, 110, 110), (160, 0, 0)


class _Page:
    """A white picture that grows downwards: things are put on it, and it is cut to its length in the end."""

    def __init__(self) -> None:
        from matplotlib import get_data_path

        folder = Path(get_data_path(), "fonts", "ttf")
        basic = ImageFont.Layout.BASIC
        self.font = ImageFont.truetype(folder / "DejaVuSans.ttf", FONT_SIZE, layout_engine=basic)
        self.bold = ImageFont.truetype(folder / "DejaVuSans-Bold.ttf", TITLE_SIZE, layout_engine=basic)
        self.image = Image.new("RGB", (WIDTH, 1000), "white")
        self.draw = ImageDraw.Draw(self.image)

    def make_room(self, bottom: int) -> None:
        """Grow until there is something below `bottom`."""
        if bottom <= self.image.height:
            return
        grown = Image.new("RGB", (WIDTH, max(2 * self.image.height, bottom)), "white")
        grown.paste(self.image)
        self.image, self.draw = grown, ImageDraw.Draw(grown)

    def text(self, at: tuple[int, int], text: str, color: tuple[int, int, int] = INK, bold: bool = False) -> None:
        """One line, cut at the margin."""
        font = self.bold if bold else self.font
        room = WIDTH - MARGIN - at[0]
        text = printable(text).replace("\n", " ")
        while font.getlength(text) > room:
            text = text[: int(len(text) * room / font.getlength(text)) - 2] + "…"
        self.make_room(at[1] + LINE)
        self.draw.text(at, text, fill=color, font=font)

    def wrapped(self, at: tuple[int, int], text: str, width: int) -> int:
        """Words over as many lines as they need, pale; returns where they end."""
        line, top = "", at[1]
        for word in text.split():
            if line and self.font.getlength(f"{line} {word}") > width:
                self.text((at[0], top), line, PALE)
                line, top = "", top + SMALL_LINE
            line = f"{line} {word}".strip()
        self.text((at[0], top), line, PALE)
        return top + SMALL_LINE

    def tokens(self, at: tuple[int, int], entries: Sequence[Entry]) -> int:
        """Tokens on their colors, line after line; returns where they end."""
        (left, top), lines = at, 1
        x, right = left, WIDTH - MARGIN
        for index, entry in enumerate(entries):
            for number, part in enumerate(entry.text.split("\n")):
                part = f"{part}↵" if number < entry.text.count("\n") else part
                width = int(self.font.getlength(part)) + 1
                if number or x + width > right:
                    x, top, lines = left, top + LINE, lines + 1
                if lines > MOST_LINES:
                    rest = sum(entry.count for entry in entries[index:])
                    self.text((left, top), f"… and {rest} tokens more: see the HTML page", PALE)
                    return top + LINE
                self.make_room(top + LINE)
                self.draw.rectangle((x, top, x + width - 1, top + LINE - 4), fill=entry.kind.color)
                self.draw.text((x, top), part, fill=INK, font=self.font)
                x += width + 1
        return top + LINE


def draw_page(title: str, notes: Sequence[str], samples: Sequence[Sample | Failure]) -> Image.Image:
    """The page; arguments as those of `write_html`."""
    page = _Page()
    page.text((MARGIN, MARGIN), title, bold=True)
    top = MARGIN + LINE + GAP // 2
    for note in notes:
        page.text((MARGIN, top), note)
        top += SMALL_LINE
    top = _legend(page, top + GAP // 2)
    for number, sample in enumerate(samples, start=1):
        page.make_room(top + 2 * LINE)
        page.draw.line((MARGIN, top, WIDTH - MARGIN, top), fill=PALE)
        page.text((MARGIN, top + GAP // 2), f"{number}. {sample.title}", bold=True)
        top = _sample(page, sample, top + GAP // 2 + LINE + 2) + GAP
    return page.image.crop((0, 0, WIDTH, top))


def _legend(page: _Page, top: int) -> int:
    left = MARGIN
    for kind in KINDS:
        width = int(page.font.getlength(kind.label)) + GAP
        page.draw.rectangle((left, top, left + width, top + LINE), fill=kind.color)
        page.text((left + GAP // 2, top + 2), kind.label)
        left += width + GAP
    return top + LINE + GAP


def _sample(page: _Page, sample: Sample | Failure, top: int) -> int:
    """Draw below its title; returns where it ends."""
    if isinstance(sample, Failure):
        page.text((MARGIN, top), sample.error, WRONG)
        return top + LINE
    for line in sample.summary:
        page.text((MARGIN, top), line, PALE)
        top += SMALL_LINE
    top += GAP // 2
    left, bottoms = MARGIN, []
    if sample.pictures:
        bottoms.append(_pictures(page, sample.pictures, (left, top)))
        left += COLUMN + GAP
    page.make_room(top + COLUMN)
    page.image.paste(sample.mask.resize((COLUMN, COLUMN), _scaling(sample.mask, COLUMN)), (left, top))
    page.draw.rectangle((left, top, left + COLUMN, top + COLUMN), outline=PALE)
    bottoms.append(page.wrapped((left, top + COLUMN + 4), sample.mask_note, COLUMN))
    bottoms.append(page.tokens((left + COLUMN + GAP, top), sample.entries))
    return max(bottoms)


def _pictures(page: _Page, pictures: Sequence[Image.Image], at: tuple[int, int]) -> int:
    """The pictures in a grid, a single one large; returns where it ends."""
    left, top = at
    a_line = min(len(pictures), PICTURES_A_LINE)
    side = (COLUMN - (a_line - 1) * 4) // a_line
    for index, picture in enumerate(pictures[:PICTURES_DRAWN]):
        row, column = divmod(index, a_line)
        page.make_room(top + (row + 1) * (side + 4))
        scaled = picture.resize((side, side), _scaling(picture, side))
        page.image.paste(scaled, (left + column * (side + 4), top + row * (side + 4)))
    bottom = top + -(-min(len(pictures), PICTURES_DRAWN) // a_line) * (side + 4)
    if len(pictures) > PICTURES_DRAWN:
        page.text((left, bottom), f"… and {len(pictures) - PICTURES_DRAWN} more", PALE)
        bottom += LINE
    return bottom


def _scaling(picture: Image.Image, side: int) -> Image.Resampling:
    """Enlarged, pixels stay sharp; reduced, they are averaged."""
    return Image.Resampling.NEAREST if picture.width < side else Image.Resampling.BOX
