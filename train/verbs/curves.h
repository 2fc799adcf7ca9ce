// The curves of runs: which metrics are drawn, how, and against what. For every page of runs.
#pragma once

#include "train/pages/chart.h"
#include "train/verbs/metrics.h"

namespace weft::train {

using Runs = std::vector<RunMetrics>;

// "steps", "tokens" or "time"; throws Error for any other name.
void require_axis(const std::string& against);
// The metrics of the runs: those that are known first, in the order of a page.
std::vector<std::string> metrics_of(const Runs& runs);
// A metric of all runs. The loss has the held-out loss with it, as dots. A run is drawn in its
// colour; the dots of a run that is alone have their numbers beside them.
Chart chart_of(const Runs& runs, const std::string& metric, const std::string& against);
// The chart against each axis, of which the page's switches show one.
std::string switched_charts(const Runs& runs, const std::string& metric);
// The switches: against what, raw or smoothed. `against` is chosen at first.
std::string switches(const std::string& against);

// The last and the least number of a metric; NaN where a run has none.
double last_of(const RunMetrics& run, const char* metric);
double least_of(const RunMetrics& run, const char* metric);
// Tokens a second, the middle of the run; NaN where it has none.
double rate_of(const RunMetrics& run);
// A cell of a table; a dash for what is not finite.
std::string cell(const char* format, double value);

}  // namespace weft::train
