"""The synthetic experiment of the NPO paper (arXiv 2404.05868, section 4): simulation, claims, report."""

from negpo.lab.npo_synthetic.report import SyntheticResult, claims_table, run_experiment, write_outputs
from negpo.lab.npo_synthetic.simulate import SyntheticSettings

__all__ = ["SyntheticResult", "SyntheticSettings", "claims_table", "run_experiment", "write_outputs"]
