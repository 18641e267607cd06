"""A data card as Markdown, whole, and as the few lines that a command prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rbft.data.card import DataCard, Share, Table
from rbft.data.reading import REASONS

_MAX_PRINTED = 5


def card_markdown(card: DataCard) -> str:
    """The whole card, every id that is missing included."""
    return "\n\n".join(
        section
        for section in (
            f"# Data card: {_plain(card.name)}",
            _overview(card),
            _section("Classes", "Videos in the manifest / annotated.", _share_table("split", card.by_split, card.labels)),
            _section(
                "Categories",
                "Videos in the manifest / annotated. A video with several categories counts in each.",
                _share_table("category", card.by_category, card.labels),
            ),
            _section("Lengths", _frames_text(card), _length_table(card)),
            _section("Left out", "Annotated, and not in the manifest.", _left_out(card)),
            _section(
                "Videos that cannot be used",
                "In the manifest all the same: a run makes an error row of each.",
                "\n".join(f"- `{id}`: {_plain(why)}" for id, why in card.unusable.items()),
            ),
            _section("Identical files", "The same bytes under several ids, within one split.", _groups(card.identical_files)),
            _section("Files that no row names", "", "\n".join(f"- `{path}`" for path in card.unnamed_files)),
            _section("Guesses without looking", "Learned on train, measured on test.", _baselines(card)),
            _section("How it was read", "", "\n".join(f"- {note}" for note in card.notes)),
        )
        if section
    ) + "\n"  # fmt: skip


def card_summary(card: DataCard) -> str:
    """A few lines: how many videos there are, by split, class and reason left out, the first ids of each."""
    total = card.num_videos
    lines = [f"{card.name}: {total.imported:,} of {total.annotated:,} annotated videos imported"]
    for split, shares in card.by_split.items():
        if total.imported and any(share.imported for share in shares.values()):
            counts = ", ".join(f"{label} {share.imported}" for label, share in shares.items())
            length = card.lengths.get(split)
            hours = f"   {length.total_s / 3600:.1f} h, {length.num_frames:,} frames, {length.num_tokens:,} tokens" if length else ""
            lines.append(f"  {split:<12}{sum(share.imported for share in shares.values()):>6}   {counts}{hours}")
    for reason, videos in card.left_out.items():
        lines.append(f"  {len(videos):,} left out, {REASONS[reason]}: {_some([str(video['id']) for video in videos])}")
    if card.unusable:
        lines.append(f"  {len(card.unusable):,} cannot be decoded: {_some(list(card.unusable))}")
    if card.identical_files:
        lines.append(f"  {len(card.identical_files):,} groups of identical files: {_some([' = '.join(g) for g in card.identical_files])}")
    if card.unnamed_files:
        lines.append(f"  {len(card.unnamed_files):,} video files that no row names: {_some(card.unnamed_files)}")
    lines += [f"  {note}" for note in card.notes]
    return "\n".join(lines)


def _overview(card: DataCard) -> str:
    total = card.num_videos
    lines = [
        f"{total.annotated:,} videos are annotated, {total.imported:,} are in the manifest"
        + (f" `{card.manifest}`." if card.manifest else "; no manifest was written."),
        "",
        f"- task: {_plain(card.task)} ({', '.join(card.labels)})",
        *(f"- annotations: `{path}`" for path in card.annotations),
    ]
    if card.video_root:
        lines.append(f"- videos: `{card.video_root}`")
    starts, ends = card.num_trimmed["start_s"], card.num_trimmed["end_s"]
    if starts or ends:
        lines.append(f"- trimmed when they are decoded: {starts:,} at their beginning, {ends:,} at their end; no file is changed")
    if not card.was_read:
        lines.append("- the videos were not opened: lengths, identical files and unusable ones are unknown")
    return "\n".join(lines)


def _frames_text(card: DataCard) -> str:
    spec = card.frames_as
    return (
        f"After trims. Frames at {spec.fps:g} FPS, {spec.min_frames} to {spec.max_frames} a video, of at most {spec.max_pixels:,} pixels; "
        f"a token is two frames of {spec.patch_multiple} x {spec.patch_multiple} pixels."
    )


def _length_table(card: DataCard) -> str:
    if not card.lengths:
        return ""
    header = ("split", "videos", "hours", "shortest s", "median s", "longest s", "frames", "tokens", "most tokens a video")
    rows = [
        (
            split,
            f"{each.num_videos:,}",
            f"{each.total_s / 3600:.2f}",
            f"{each.shortest_s:.1f}",
            f"{each.median_s:.1f}",
            f"{each.longest_s:.1f}",
            f"{each.num_frames:,}",
            f"{each.num_tokens:,}",
            f"{each.most_tokens:,}",
        )
        for split, each in card.lengths.items()
    ]
    return _table(header, rows)


def _share_table(corner: str, table: Table, labels: Sequence[str]) -> str:
    if not table:
        return ""
    columns = list(dict.fromkeys((*labels, *(label for shares in table.values() for label in shares))))
    nobody = Share(0, 0)
    rows = []
    for row, shares in table.items():
        total = Share(sum(share.annotated for share in shares.values()), sum(share.imported for share in shares.values()))
        cells = [total, *(shares.get(label, nobody) for label in columns)]
        rows.append((row, *(f"{share.imported:,} / {share.annotated:,}" for share in cells)))
    return _table((corner, "all", *columns), rows)


def _left_out(card: DataCard) -> str:
    parts = []
    for reason, videos in card.left_out.items():
        by_split: dict[str, list[str]] = {}
        for video in videos:
            by_split.setdefault(video["split"] or "", []).append(str(video["id"]))
        lists = [f"{split + ': ' if split else ''}{', '.join(f'`{id}`' for id in ids)}" for split, ids in by_split.items()]
        parts.append(
            f"### {reason[0].upper()}{reason[1:]}: {len(videos):,}\n\n{REASONS[reason][0].upper()}{REASONS[reason][1:]}.\n\n"
            + "\n\n".join(lists)
        )
    return "\n\n".join(parts)


def _baselines(card: DataCard) -> str:
    return "\n".join(f"- {each.name}: {each.accuracy:.1%} ({each.num_right} of {each.num_videos})" for each in card.baselines)


def _groups(groups: Iterable[Sequence[str]]) -> str:
    return "\n".join("- " + ", ".join(f"`{id}`" for id in ids) for ids in groups)


def _section(title: str, text: str, body: str) -> str:
    return "\n\n".join(part for part in (f"## {title}", text, body) if part) if body else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MAX_PRINTED:,} more" if len(ids) > _MAX_PRINTED else ""
    return ", ".join(ids[:_MAX_PRINTED]) + more
