#include "train/progress.h"

#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "core/error.h"
#include "core/file.h"
#include "core/units.h"

namespace weft::train {
namespace {

// Sends on what was printed. Where that cannot be, it is said once and nothing is shown any more.
void flush_or_drop() {
  const int code = code_of(std::fflush(stdout));
  if (code == 0 && !std::ferror(stdout)) return;
  std::fprintf(stderr,
               "weft: standard output cannot be written: %s; the run goes on, and shows nothing "
               "there\n",
               reason_of(code ? code : EIO).c_str());
  if (!std::freopen("/dev/null", "w", stdout)) std::clearerr(stdout);
}

// The number behind "step": in a line of metrics.jsonl, or -1.
int64_t step_of(const std::string& line) {
  const size_t at = line.find("\"step\":");
  return at == std::string::npos ? -1 : std::strtoll(line.c_str() + at + 7, nullptr, 10);
}

}  // namespace

void show_line(const std::string& line) {
  std::printf("%s\n", line.c_str());
  flush_or_drop();
}

Progress::Progress(int64_t steps, int64_t done)
    : live_(stdout), steps_(steps), begun_(done), step_(done), last_step_(Clock::now()) {}

double Progress::seconds_left() const {
  return seconds_per_step_ * static_cast<double>(steps_ - step_);
}

void Progress::step(int64_t step, const std::string& text, double tokens, bool log) {
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - last_step_).count();
  last_step_ = now;
  step_ = step;
  // A running mean that forgets over about twenty steps.
  const double weight = 1.0 / static_cast<double>(std::min<int64_t>(20, step - begun_));
  seconds_per_step_ += weight * (seconds - seconds_per_step_);
  tokens_per_second_ = seconds_per_step_ > 0 ? tokens / seconds_per_step_ : 0;
  if (live_.terminal() ? !live_.due() && step != steps_ : !log) return;
  live_.draw(concat("step ", step, "/", steps_, " | ", text, " | ", count_text(tokens_per_second_),
                    " tok/s | ", duration_text(seconds_left()), " left"));
  flush_or_drop();
}

void Progress::say(const std::string& line, bool counted) {
  live_.say(line);
  flush_or_drop();
  if (!counted) last_step_ = Clock::now();
}

void Progress::finish() {
  live_.finish();
  flush_or_drop();
}

Metrics::Metrics(const std::string& folder, int64_t step, bool events) {
  const std::string path = folder + "/metrics.jsonl";
  std::string kept;
  bool evaluated = false;
  int64_t later = 0, cut = 0;
  std::error_code failed;
  std::istringstream in(std::filesystem::exists(path, failed) ? read_file(path) : "");
  require(!failed, path, ": cannot be looked at: ", failed.message());
  for (std::string line; std::getline(in, line);) {
    // A line cut short by a crash has no closing brace.
    if (line.empty() || line.back() != '}')
      ++cut;
    else if (step == 0 || step_of(line) > step)
      ++later;
    else
      kept += line + "\n";
    evaluated = evaluated || (step_of(line) == step && line.find("\"eval_loss\"") != line.npos);
  }
  lacks_evaluation_ = !kept.empty() && !evaluated;
  if (later + cut > 0)
    dropped_ = concat("metrics.jsonl: dropped ", later,
                      step == 0 ? " lines of an earlier run" : " lines of later steps",
                      cut > 0 ? concat(" and ", cut, " that are not whole") : "");
  write_file(path, kept);
  file_ = Descriptor(path, O_WRONLY | O_APPEND);
  require_call(file_.code(), path, ": cannot be written");
  if (events) events_ = std::make_unique<EventLog>(folder, kept);
}

int Metrics::told(int metrics, int events) {
  if (metrics == 0 && events != 0) failed_ = kEventFile;
  return metrics ? metrics : events;
}

int Metrics::write(const std::string& json_line) {
  const std::string line = json_line + "\n";
  const int metrics = file_.write(line.data(), line.size());
  return told(metrics, events_ ? events_->write(json_line) : 0);
}

int Metrics::flush() { return told(code_of(::fsync(file_.get())), events_ ? events_->flush() : 0); }

}  // namespace weft::train
