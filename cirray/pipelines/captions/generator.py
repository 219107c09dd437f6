"""The stage that makes a caption-template generator: captions and template ids in, a generator artifact out."""

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.unfinished import stage_function
from cirray.generators.caption_template import pick_templates, save_caption_generator
from cirray.pipelines.captions.config import CaptionGeneratorRun
from cirray.triplets.captions import read_captions


@stage_function
def run_caption_generator(run: CaptionGeneratorRun) -> Manifest:
    """Write a generator for `cirray generate`.

    Returns: Manifest of kind "generator"; counts `captions` and `templates`.

    Raises ArtifactError: captions are missing, or another artifact is at `out`; ConfigError for an unknown template;
    DataError when two captions artifacts disagree about an image.
    """
    version, templates = pick_templates(run.templates)
    stage = open_stage(run, "generator", {"templates": f"{version} {sorted(templates.items())}"})
    if stage.finished:
        return stage.finished
    rows = list(read_captions(run.captions).values())
    save_caption_generator(stage.local, rows, run.templates, run.token_limit, run.rewrite.to_dict())
    return stage.publish({"captions": len(rows), "templates": len(templates)}, extra={"prompt_version": version})
