"""From candidate to judgement: probes, controls, gates and evidence, on any candidate, whoever made it."""
