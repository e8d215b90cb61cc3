"""Every interval and test of the project, and nothing else; knows nothing about models, metrics or files."""

from tunesmith.core.stats.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from tunesmith.core.stats.bootstrap import bootstrap, bootstrap_mean
from tunesmith.core.stats.clustered import design_effect, icc
from tunesmith.core.stats.gate import Gate, GateAnswer, GateRule, decide, non_inferiority, superiority
from tunesmith.core.stats.intervals import clopper_pearson, jeffreys, mean_interval, newcombe, rate_interval, wilson
from tunesmith.core.stats.judge import post_stratified_mean, ppi_mean
from tunesmith.core.stats.multiplicity import benjamini_hochberg, holm
from tunesmith.core.stats.paired import clipped, mcnemar, paired_difference, permutation_test, tango
from tunesmith.core.stats.pooled import paired_pooled, paired_pooled_f1, pooled_f1_interval, pooled_interval, row_f1
from tunesmith.core.stats.power import (
    power_edge,
    power_means,
    power_non_inferiority,
    sample_size_means,
    sample_size_non_inferiority,
    sample_size_paired_rates,
    sample_size_paired_scores,
    sample_size_proportions,
    smallest_detectable,
    smallest_detectable_rates,
)
from tunesmith.core.stats.ranking import bradley_terry, spearman
from tunesmith.core.stats.records import Difference, Interval
from tunesmith.core.stats.runs import run_noise, with_run_noise
from tunesmith.core.stats.sequential import Bets, mean_sequence, rate_at_least, rate_at_most, rate_evidence, rate_sequence

__all__ = [
    "Bets",
    "Difference",
    "Gate",
    "GateAnswer",
    "GateRule",
    "Interval",
    "benjamini_hochberg",
    "bootstrap",
    "bootstrap_mean",
    "bradley_terry",
    "clipped",
    "clopper_pearson",
    "cohen_kappa",
    "decide",
    "design_effect",
    "fleiss_kappa",
    "holm",
    "icc",
    "jeffreys",
    "krippendorff_alpha",
    "mcnemar",
    "mean_interval",
    "mean_sequence",
    "newcombe",
    "non_inferiority",
    "paired_difference",
    "paired_pooled",
    "paired_pooled_f1",
    "permutation_test",
    "pooled_f1_interval",
    "pooled_interval",
    "post_stratified_mean",
    "power_edge",
    "power_means",
    "power_non_inferiority",
    "ppi_mean",
    "rate_at_least",
    "rate_at_most",
    "rate_evidence",
    "rate_interval",
    "rate_sequence",
    "row_f1",
    "run_noise",
    "sample_size_means",
    "sample_size_non_inferiority",
    "sample_size_paired_rates",
    "sample_size_paired_scores",
    "sample_size_proportions",
    "smallest_detectable",
    "smallest_detectable_rates",
    "spearman",
    "superiority",
    "tango",
    "wilson",
    "with_run_noise",
]
