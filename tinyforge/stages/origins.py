"""Names and licences of the models that a build is made from."""

from pathlib import Path

from tinyforge import embedded
from tinyforge.stages.road import Road

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
    if wanted.pretrained:
        known["student"] = {"name": wanted.student, "licence": licence_of_teacher(wanted.student)}
    return known


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
