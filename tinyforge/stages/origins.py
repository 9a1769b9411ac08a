"""Names and licences of the models that a build is made from."""

from pathlib import Path

from tinyforge import embedded
from tinyforge.stages.road import Road
from tinyforge.stages.starts import start_folder

PREFIX = "timm:"


def origins(road: Road) -> dict[str, dict[str, str]]:
    """'backbone' and 'teacher', and 'student' where it starts from weights of others: {name, licence} of each."""
    known = {
        "backbone": _shipped(road.backbone_choice.source, "backbone")
        or {"name": road.backbone.name, "licence": road.backbone.licence},
        "teacher": _shipped(road.teacher_choice.source, "teacher")
        or {"name": road.extractor.name, "licence": licence_of_teacher(road.teacher_choice.source)},
    }
    wanted = road.recipe.distill
    if (folder := start_folder(wanted)) is not None:
        known["student"] = _shipped_start(folder) or {"name": folder.name, "licence": licence_of_teacher(str(folder))}
    elif wanted.pretrained:
        known["student"] = {"name": wanted.student, "licence": licence_of_teacher(wanted.student)}
    return known


def _shipped_start(folder: Path) -> dict[str, str] | None:
    """Of starting weights that ship in the package."""
    for domain, card in embedded.domains().items():
        if folder.is_relative_to(embedded.HERE / domain):
            return {"name": f"{folder.name} ({domain} starting weights)", "licence": card["licence"]}
    return None


def _shipped(source: str, part: str) -> dict[str, str] | None:
    """Of a model that ships in the package, by its domain's card."""
    cards = embedded.domains()
    return next(
        (
            {"name": f"{domain} {part}", "licence": card["licence"]}
            for domain, card in cards.items()
            if source == str(embedded.path(domain, part))
        ),
        None,
    )


def licence_of_teacher(source: str) -> str:
    """What timm records of its weights, or the card in a folder says; 'unknown' of a checkpoint."""
    if not source.startswith(PREFIX):
        from tinyforge.diffusion.sources import licence_of

        return licence_of(Path(source))
    model, _, file = source.removeprefix(PREFIX).partition("@")
    if file:
        return "unknown"
    import timm

    return getattr(timm.get_pretrained_cfg(model), "license", None) or "unknown"
