"""Binarization: find how much ink each pixel holds, whatever the paper and the light."""

import numpy as np
import scipy
from PIL import Image

PAPER_SIZE = 64  # pixels of the longer side of the image in which paper is looked for
WEAK = 0.3  # ink below it is none; it counts where strong ink, above 0.5, is near
MIN_CONTRAST = 0.06  # between ink and paper, as a share of the whole range
SMALL = 32  # pixels of the longer side; in a smaller image a digit is shape in gray, not strokes
MAX_STROKE, MAX_PAGE_STROKE = 0.36, 0.12  # widths of strokes, as a share of the longer side
BLUR, PAGE_BLUR = 0.002, 0.0005  # size of the details that are lost, as a share of that side
PAGE_SIZES = (256, 1024)  # pixels, minimum and maximum of the longer side of a page's ink
NEIGHBOURS = np.ones((3, 3))  # for scipy: a pixel is connected with all eight around it


def find_ink(gray: np.ndarray, small: bool) -> np.ndarray:
    """Return how much ink each pixel holds: float32 (H, W), 0 for paper, above 0.5 for ink."""
    ink, level, _ = find_contrast(gray, small)
    return sharpen(ink / level)


def find_page_ink(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much ink each pixel of a page holds, as `find_ink` does, and its contrast.

    Both are (h, w), of at most 1024 px. Faint ink is measured by the ink around it, or only the
    strongest of the page would count.
    """
    work = resize_to(gray, int(np.clip(max(gray.shape), *PAGE_SIZES)))
    small = max(gray.shape) <= SMALL
    contrast, level, noise = find_contrast(work, small, MAX_PAGE_STROKE, PAGE_BLUR)
    side = max(8, max(contrast.shape) // 16)
    height, width = contrast.shape
    blocks = np.pad(contrast, ((0, -height % side), (0, -width % side)))
    rows, columns = blocks.shape[0] // side, blocks.shape[1] // side
    blocks = blocks.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows, columns, -1)
    few = max(3, side * side // 200)
    strongest = scipy.ndimage.maximum_filter(np.partition(blocks, -few)[..., -few], 3)
    strongest = resize(strongest, rows * side, columns * side)[:height, :width]
    minimum = max(MIN_CONTRAST, 6 * noise, 0.3 * level)
    return sharpen(contrast / np.maximum(strongest, minimum)), contrast


def find_contrast(
    gray: np.ndarray, small: bool, max_width: float = MAX_STROKE, blur: float = BLUR
) -> tuple[np.ndarray, float, float]:
    """Return how far each pixel is from the paper, (H, W), and the level of ink and of noise.

    No stroke is wider than `max_width`, and details finer than `blur` are lost; both are shares
    of the longer side. Raises ValueError if there is no ink.
    """
    slope = fit_plane(resize_to(gray, PAPER_SIZE // 2))
    if not (small_ink_is_light(gray) if small else ink_is_light(gray, slope)):
        gray, slope = 1 - gray, 1 - slope  # ink is light from here on
    light = scipy.ndimage.gaussian_filter(gray, blur * max(gray.shape))
    ink = subtract_paper(light if small else subtract_wide(light, slope, max_width))
    below = ink[ink < 0]  # only paper strays to there, never ink
    noise = np.sqrt((below**2).mean()) if below.size else 0.0
    few = max(8, int(0.0005 * ink.size))
    highest = np.partition(ink.ravel(), -few)[-few:]
    level = highest[0]
    if level < max(MIN_CONTRAST, 5 * noise):  # a very small digit may still stand out
        level = np.partition(highest, -3)[-3]
        if level < max(MIN_CONTRAST, 12 * noise):
            raise ValueError("the image is blank: no ink found")
    return ink, level, noise


def sharpen(ink: np.ndarray) -> np.ndarray:
    """Scale ink, 1 for most of what is written, so that what is above 0.5 is ink."""
    ink = ink.clip(0, 1)
    return ink / (2 * min(max(otsu(ink), 0.25), 0.45))


def clean_ink(gray: np.ndarray) -> np.ndarray | None:
    """Return the ink of a small image, (H, W) in 0..1, or None if its paper has several tones."""
    spread = np.ptp(gray)
    if spread < MIN_CONTRAST:
        return None
    ink = (gray - gray.min()) / spread
    ink = ink if small_ink_is_light(gray) else 1 - ink
    return ink if (ink < 0.05).mean() > 0.25 else None


def otsu(values: np.ndarray) -> float:
    """Return the threshold that best separates values in 0..1 into two classes (Otsu 1979)."""
    counts = np.bincount((values * 64).astype(np.uint8).clip(0, 63).ravel(), minlength=64)
    below, sums = counts.cumsum(), (counts * (np.arange(64) + 0.5) / 64).cumsum()
    above = values.size - below
    means = sums / np.maximum(below, 1), (sums[-1] - sums) / np.maximum(above, 1)
    between = below * above * (means[0] - means[1]) ** 2  # variance between the two classes
    return (1 + int(between.argmax())) / 64 if between.any() else 0.5


def ink_is_light(gray: np.ndarray, slope: np.ndarray) -> bool:
    """Return whether the ink is lighter than the paper, by three signs; `slope` is its plane.

    Ink covers less than paper, so values are skewed towards it. What is taken for ink covers less
    if it is ink. And the border is mostly paper.
    """
    gray = resize_to(gray, PAPER_SIZE)
    skews = []
    for sigma in (0.06, 0.12):
        detail = gray - scipy.ndimage.gaussian_filter(gray, sigma * max(gray.shape))
        skews.append((detail**3).mean() / max((detail**2).mean(), 1e-12) ** 1.5)
    paper = np.median(border(gray)) + np.median(gray) < gray.min() + gray.max()
    sides = (1 - gray, 1 - slope), (gray, slope)
    dark, light = (subtract_wide(*side, MAX_STROKE).clip(1e-3, 1).mean() for side in sides)
    less = np.clip(np.log(dark / light), -1.5, 1.5)
    return bool(np.clip(np.mean(skews), -1, 1) + 0.3 * less + (0.25 if paper else -0.25) > 0)


def small_ink_is_light(gray: np.ndarray) -> bool:
    """Return whether the ink of a small image is lighter than its paper.

    Ink may fill half of a crop. Even there the border is mostly paper, and ink has fewer parts.
    """
    middle, spread = (gray.min() + gray.max()) / 2, max(np.ptp(gray), 1e-6)
    light = gray > middle
    dark_parts, light_parts = (scipy.ndimage.label(side, NEIGHBOURS)[1] for side in (~light, light))
    darkness = 2 * (middle - border(gray).mean()) / spread  # of the border
    return bool(darkness + 0.1 * (dark_parts - light_parts) > 0)


def border(gray: np.ndarray) -> np.ndarray:
    """Return the pixels along the four sides."""
    return np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])


def subtract_wide(light: np.ndarray, slope: np.ndarray, max_width: float) -> np.ndarray:
    """Return how much lighter each pixel is than any wide area there, as a share of the rest.

    Shadows, tables and sheets are wider than any stroke. A morphological opening by a square that
    fits into no stroke finds their tones, edges and all. The rest is the range up to white: the
    division by it makes ink in the shade as strong as ink in the light.
    """
    side = round(max_width * max(light.shape)) | 1
    # Beyond the edge, the shade goes on and the ink does not.
    slope = resize(slope, *light.shape)
    above = light - slope
    if (np.abs(above) > 0.03).mean() > 0.5:  # a shadow, which is no slope
        slope, above = np.zeros_like(light), light
    inked = (above > max(0.4 * above.max(), 0.15)) & (light > 0.88 * light.max())
    ground = np.pad(np.where(inked, above.min(), above), side - 1, mode="edge")
    ground[side - 1 : 1 - side, side - 1 : 1 - side] = above
    wide = slope + slide(slide(ground, side, side, np.minimum), side, side, np.maximum)
    return (light - wide) / np.maximum(1 - wide, 0.1)


def subtract_paper(light: np.ndarray) -> np.ndarray:
    """Return how far each pixel is from the paper around it: 0 on paper, 1 for white on black.

    The paper's tone is the local mean of what is not ink, so it follows shade and stains.
    """
    small = resize_to(light, PAPER_SIZE)  # paper is smooth, and this saves most of the time
    paper = np.percentile(small, 25)  # to begin with; wide shadows are gone already
    few = max(4, small.size // 500)
    for sigma in (0.16, 0.12, 0.1):
        ink = (small - paper) / np.maximum(1 - paper, 0.1)
        mask = (ink < 0.35 * np.partition(ink.ravel(), -few)[-few]).astype(np.float32)
        mean = (small * mask).sum() / max(mask.sum(), 1)  # stands in where no paper is near
        sigma *= max(small.shape)
        weight = scipy.ndimage.gaussian_filter(mask, sigma) + 1e-3
        paper = (scipy.ndimage.gaussian_filter(small * mask, sigma) + 1e-3 * mean) / weight
    paper = resize(paper, *light.shape)
    return (light - paper) / np.maximum(1 - paper, 0.1)


def fit_plane(values: np.ndarray) -> np.ndarray:
    """Return the plane near most of the values, float32 (H, W), as light from one side gives it.

    Iteratively reweighted least squares find the least absolute deviations: ink is but an outlier.
    """
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    terms = np.stack([np.ones(values.size), rows.ravel(), columns.ravel()], axis=1)
    target, weights = values.ravel().astype(np.float64), np.ones(values.size)
    for _ in range(6):
        scaled = (terms * weights[:, None]).T  # the normal equations are but three
        ridge = 1e-9 * np.eye(3)  # a single row of pixels fixes no plane
        plane = terms @ np.linalg.solve(scaled @ terms + ridge, scaled @ target)
        weights = 1 / (np.abs(target - plane) + 0.01)
    return plane.reshape(values.shape).astype(np.float32)


def remove_ruled_lines(mask: np.ndarray, min_length: float = 0.1) -> np.ndarray:
    """Remove the lines of ruled or squared paper from a mask of ink, (H, W).

    A ruled line is thin and runs across the whole image, straight but perhaps a little askew;
    `min_length` is its shortest unbroken piece, as a share of the image. A single one must be
    thinner than the strokes, or it may be one of them. Gaps that this leaves in strokes are closed.
    """
    flat, n_flat = find_ruled_lines(mask, min_length)
    upright, n_upright = find_ruled_lines(mask.T, min_length)
    rest = mask & ~flat & ~upright.T
    if not rest.any():
        return mask
    if n_flat + n_upright == 1 and depth(rest).max() < 1.8 * depth(mask & ~rest).max():
        return mask
    for lines, count in ((flat, n_flat), (upright.T, n_upright)):
        if count:
            gap = int(2 * (lines.sum() / (count * max(lines.shape)) + 2)) | 1
            shape = (gap, 1) if lines is flat else (1, gap)
            kept = mask & ~lines
            mask = kept | (scipy.ndimage.binary_closing(kept, np.ones(shape)) & lines & mask)
    return mask


def find_ruled_lines(mask: np.ndarray, min_length: float) -> tuple[np.ndarray, int]:
    """Return the mask of the thin lines that run along the rows, and their number.

    The lines are parallel. Their slope is that under which the pixels of thin runs add up best.
    """
    height, width = mask.shape
    near = dilate(mask, 3, 1)
    thin = near & ~opening(near, max(3, height // 40) + 3, 1)
    rows, columns = np.nonzero(opening(thin, 1, max(9, int(min_length * width))))
    if rows.size < 0.3 * width:  # not enough for one line
        return np.zeros_like(mask), 0

    def level(rows: np.ndarray, columns: np.ndarray, slope: float) -> np.ndarray:
        """Return the rows of pixels once lines of this slope are turned flat."""
        return np.rint(rows - slope * (columns - width / 2)).astype(int).clip(0, height - 1)

    slopes = np.linspace(-0.07, 0.07, 15)
    profiles = [np.bincount(level(rows, columns, slope), minlength=height) for slope in slopes]
    best = int(np.argmax([(profile.astype(float) ** 2).sum() for profile in profiles]))
    inked = profiles[best] / width  # how much of each line there is
    groups, n_groups = scipy.ndimage.label(inked > 0.2)
    rows, columns = np.nonzero(near)
    groups_of_pixels = groups[level(rows, columns, slopes[best])]
    lines, count, edge = np.zeros_like(mask), 0, 1 + width // 50
    for i in range(1, n_groups + 1):
        on_line = groups_of_pixels == i
        through = np.bincount(columns[on_line], minlength=width) > 0
        minimum = 0.3 if through.mean() > 0.95 else 0.55  # a digit may hide the rest of the line
        if inked[groups == i].max() > minimum and through[:edge].any() and through[-edge:].any():
            lines[rows[on_line], columns[on_line]] = True
            count += 1
    return lines, count


def slide(values: np.ndarray, height: int, width: int, combine: np.ufunc) -> np.ndarray:
    """Combine values, (H, W), over each rectangle of a size that lies within them.

    Returns (H - height + 1, W - width + 1). Each step combines twice as many, which is a dozen
    times as fast as scipy.ndimage's morphology.
    """
    for axis, size in enumerate((height, width)):
        values, done = values.swapaxes(0, axis), 1
        while done < size:
            step = min(done, size - done)
            values, done = combine(values[:-step], values[step:]), done + step
        values = values.swapaxes(0, axis)
    return values


def dilate(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Grow a mask, (H, W), by a rectangle."""
    padding = [((size - 1) // 2, size // 2) for size in (height, width)]
    return slide(np.pad(mask, padding), height, width, np.logical_or)


def erode(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink a mask, (H, W), by a rectangle."""
    padding = [(size // 2, (size - 1) // 2) for size in (height, width)]
    return slide(np.pad(mask, padding), height, width, np.logical_and)


def opening(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Keep the part of a mask, (H, W), into which a rectangle fits."""
    return dilate(erode(mask, height, width), height, width)


def resize(ink: np.ndarray, height: float, width: float) -> np.ndarray:
    """Scale ink, (H, W), anti-aliased, to at least 1 px each way."""
    size = (max(1, round(width)), max(1, round(height)))
    image = Image.fromarray(np.asarray(ink, np.float32))
    return np.asarray(image.resize(size, Image.BICUBIC, reducing_gap=1.5))


def resize_to(gray: np.ndarray, size: int) -> np.ndarray:
    """Scale gray values so that the longer side is `size`."""
    scale = size / max(gray.shape)
    if abs(scale - 1) < 0.1:
        return gray
    return resize(gray, gray.shape[0] * scale, gray.shape[1] * scale)


def bounding_box(mask: np.ndarray, margin: int = 1) -> tuple[slice, slice]:
    """Return the rows and columns that a mask occupies, with a margin in pixels."""
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(max(0, span[0] - margin), span[-1] + 1 + margin) for span in spans)


def depth(mask: np.ndarray) -> np.ndarray:
    """Return how far inside a mask, (H, W), each pixel is: the distance to its edge."""
    return scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
