// The program: reads the command line, calls a verb, prints what went wrong. Nothing else in the project
// prints an error or ends the process.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/doctor.h"
#include "train/report.h"
#include "train/verbs.h"
#include "train/verbs_kernels.h"

namespace {

using namespace weft;
using namespace weft::train;

// OpenMP's threads spin for milliseconds while they wait, which costs dearly on a busy machine. The
// library reads its settings before main() begins, so the program starts itself once more.
void choose_environment(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  if (setenv("GOMP_SPINCOUNT", "10000", 1) == 0)
    execv("/proc/self/exe", argv);  // returns only if it failed: then go on as we are
}

// A number that is closed would go to the next file that is opened, and what is printed with it. What
// is opened in its place is open the wrong way round: use of it fails, as it would have.
void hold_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0)
      (void)!::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

// Below so much address space the libraries end the program themselves: before main() begins, or where
// OpenMP makes its threads. So this is told before any of them begins; write() and _exit() alone may
// be used here.
__attribute__((no_sanitize("address"))) void refuse_low_limit(int, char**, char**) {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  const auto threads = static_cast<rlim_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  if (limit.rlim_cur >= ((128 + 16 * threads) << 20)) return;
  constexpr std::string_view kMessage =
      "weft: the limit of address space (ulimit -v) is too low; expected at least 128 MiB and 16 "
      "MiB more for each processor\n";
  const ssize_t written = write(STDERR_FILENO, kMessage.data(), kMessage.size());
  _exit(written < 0 ? 1 : 2);
}
__attribute__((section(".preinit_array"),
               used)) void (*const before_libraries)(int, char**, char**) = refuse_low_limit;

// The library takes a number that 64 bits do not hold for the largest that they hold.
std::string refuse_too_large(const std::string& text) {
  int64_t number = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
  return read.ec == std::errc::result_out_of_range
             ? concat(text, " is out of range, expected a number from 0 to ", INT64_MAX)
             : "";
}
const CLI::Validator in_64_bits(refuse_too_large, "");

void add_device(CLI::App* verb, std::string& device) {
  verb->add_option(
      "--device", device,
      "cpu, cuda, cuda:N or auto (standard: the recipe's; auto where it says nothing)");
}

void add_set(CLI::App* verb, std::vector<std::string>& set) {
  verb->add_option("--set", set, "override a key of the recipe: --set train.steps=500")
      ->type_name("KEY=VALUE");
}

struct Arguments {
  TrainArguments train;
  EvalArguments eval;
  GenerateArguments generate;
  InspectArguments inspect;
  DataArguments data;
  DoctorArguments doctor;
  ExportArguments export_;
};

void add_train(CLI::App& app, TrainArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("train", "train a model from a recipe");
  verb->footer(
      "Example:\n  weft train recipes/quickstart.toml --set train.steps=500\n"
      "  weft train recipes/quickstart.toml --resume\n"
      "Ctrl-C saves and stops; --resume goes on, bit for bit as the unbroken run.");
  verb->add_option("recipe", a.recipe, "the recipe, a TOML file")->required();
  add_set(verb, a.set);
  verb->add_flag("--resume", a.resume, "go on from the newest checkpoint of this run");
  verb->add_option("--from", a.from, "with --resume: go on from this checkpoint");
  verb->add_option("--profile", a.profile,
                   "write a trace of a few steady steps on a GPU (Perfetto)")
      ->type_name("FILE");
  verb->add_flag("--overwrite", a.overwrite,
                 "start anew where an earlier run lies; with --from: give up what came after it");
  add_device(verb, a.device);
  verb->callback([&] { status = run_train(a); });
}

void add_eval(CLI::App& app, EvalArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("eval", "loss of a checkpoint on held-out text");
  verb->footer("Example:\n  weft eval runs/quickstart/best.h5 --data book.txt");
  verb->add_option("checkpoint", a.checkpoint, "a checkpoint, or the folder of a run")->required();
  verb->add_option("--data", a.data, "a text file or folder (standard: the run's held-out part)");
  verb->add_option("--batches", a.batches, "how many batches (standard: all)")->check(in_64_bits);
  add_device(verb, a.device);
  verb->callback([&] { status = run_eval(a); });
}

void add_generate(CLI::App& app, GenerateArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("generate", "let a checkpoint write");
  verb->footer("Example:\n  weft generate runs/quickstart --prompt \"In the beginning\" --seed 7");
  verb->add_option("checkpoint", a.checkpoint, "a checkpoint, or the folder of a run")->required();
  verb->add_option("--prompt", a.prompt, "the text to go on from")->required();
  verb->add_option("--tokens", a.tokens, "how many tokens to write")
      ->capture_default_str()
      ->check(in_64_bits);
  verb->add_option("--temperature", a.temperature, "0: always the likeliest token")
      ->capture_default_str();
  verb->add_option("--top-k", a.top_k, "draw from the k likeliest; 0: from all")
      ->capture_default_str()
      ->check(in_64_bits);
  verb->add_option("--top-p", a.top_p, "draw from the likeliest that hold this much probability")
      ->capture_default_str();
  verb->add_option("--seed", a.seed, "the same seed writes the same text")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber)
      ->check(in_64_bits);
  add_device(verb, a.device);
  verb->callback([&] { status = run_generate(a); });
}

void add_inspect(CLI::App& app, InspectArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("inspect", "what a recipe needs, found without running it");
  verb->footer("Example:\n  weft inspect recipes/quickstart.toml --set train.batch=64");
  verb->add_option("recipe", a.recipe, "the recipe, a TOML file")->required();
  add_set(verb, a.set);
  verb->add_flag("--json", a.json, "print JSON");
  add_device(verb, a.device);
  verb->callback([&] { status = run_inspect(a); });
}

void add_data(CLI::App& app, DataArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("data", "make a token dataset from text, or describe one");
  verb->footer(
      "Example:\n  weft data books/ more.txt --tokenizer sentencepiece --vocabulary 4096 "
      "--out books.h5\n  weft data --describe books.h5");
  verb->add_option("sources", a.sources, "text files, folders, or kjv");
  verb->add_option("--out", a.out, "the dataset to write (HDF5)");
  verb->add_option("--tokenizer", a.tokenizer, "bytes or sentencepiece")->capture_default_str();
  verb->add_option("--vocabulary", a.vocabulary, "size of a trained vocabulary")
      ->capture_default_str()
      ->check(in_64_bits);
  verb->add_option("--document", a.document, "what a document is: file, blank (line) or line")
      ->capture_default_str();
  verb->add_option("--describe", a.describe, "print what a dataset holds");
  verb->callback([&] { status = run_data(a); });
}

void add_export(CLI::App& app, ExportArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand(
      "export", "write a run's first parameters and batches, for another framework to follow it");
  verb->footer("Example:\n  weft export recipes/gpt.toml --steps 500 --out gpt.h5");
  verb->add_option("recipe", a.recipe, "the recipe, a TOML file")->required();
  add_set(verb, a.set);
  verb->add_option("--steps", a.steps, "steps whose batches are written")
      ->capture_default_str()
      ->check(in_64_bits);
  verb->add_option("--out", a.out, "the file to write (HDF5)")->required();
  verb->callback([&] { status = run_export(a); });
}

void add_doctor(CLI::App& app, DoctorArguments& a, int& status) {
  CLI::App* verb =
      app.add_subcommand("doctor", "what this machine has, what is missing, and what to do");
  verb->footer(
      "Example:\n  weft doctor --device cuda\nExits with 2 if that device cannot be used.");
  verb->add_option("--device", a.device, "what is wanted: cpu, cuda or cuda:N");
  verb->add_option("--out", a.out, "where runs will lie")->capture_default_str();
  verb->callback([&] { status = run_doctor(a, std::cout); });
}

void add_version(CLI::App& app, int& status) {
  CLI::App* verb = app.add_subcommand("version", "version, build and machine");
  verb->footer("Example:\n  weft version");
  verb->callback([&] { status = run_version(); });
}

// `weft help VERB` is `weft VERB --help`, `weft --version` is `weft version`.
std::vector<std::string> words_of(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  if (!words.empty() && words[0] == "--version") return {"version"};
  if (words.empty() || words[0] != "help") return words;
  std::erase(words, "help");
  words.emplace_back("--help");
  return words;
}

void refuse_unknown_verb(const CLI::App& app, const std::string& word) {
  if (word.rfind('-', 0) == 0) return;
  std::vector<std::string> verbs;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; }))
    verbs.push_back(verb->get_name());
  if (!contains(verbs, word)) fail(unknown_name("verb", word, verbs));
}

// A flag that the verb does not have, with the nearest that it has.
void refuse_unknown_flag(const CLI::App& app) {
  for (const CLI::App* verb : app.get_subcommands()) {
    std::vector<std::string> flags;
    for (const CLI::Option* option : verb->get_options())
      for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
    for (const std::string& word : verb->remaining())
      if (word.rfind("--", 0) == 0)
        fail(verb->get_name(), ": ", unknown_name("flag", word.substr(0, word.find('=')), flags));
  }
}

int run(int argc, char** argv) {
  CLI::App app("Weft trains efficient-attention language models from recipes.", "weft");
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  app.footer(
      "weft help VERB shows a verb's flags and an example. Start with: weft train "
      "recipes/quickstart.toml");
  int status = 0;
  Arguments a;
  add_train(app, a.train, status);
  add_eval(app, a.eval, status);
  add_generate(app, a.generate, status);
  add_inspect(app, a.inspect, status);
  add_data(app, a.data, status);
  add_export(app, a.export_, status);
  add_kernel_verbs(app, status);
  add_doctor(app, a.doctor, status);
  app.set_version_flag("--version", WEFT_VERSION, "what `weft version` prints");
  add_version(app, status);
  app.add_subcommand("help", "this text, or that of a verb: weft help train");
  std::vector<std::string> words = words_of(argc, argv);
  if (words.empty()) {
    std::cerr << app.help();
    return 2;
  }
  refuse_unknown_verb(app, words.front());
  std::reverse(words.begin(), words.end());  // as the library wants them
  try {
    app.parse(words);
  } catch (const CLI::Success& e) {
    return app.exit(e);
  } catch (const CLI::ExtrasError& e) {
    refuse_unknown_flag(app);
    app.exit(e);
    return 2;
  } catch (const CLI::ParseError& e) {
    app.exit(e);
    return 2;
  }
  return status;
}

// What is said of an exception that is not ours, and the status: a state of the machine is 2, a fault 1.
int end_with(const char* what, const std::string& text, int status) {
  std::fprintf(stderr, "weft%s%s: %s\n", *what ? " " : "", what, text.c_str());
  return status;
}

int end_of_library(const char* verb) {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return end_with(verb, out_of_memory_text(), 2);
  } catch (const std::length_error&) {
    return end_with(verb,
                    "out of memory: a size in the recipe, an option or a file is larger than any "
                    "memory",
                    2);
  } catch (const std::filesystem::filesystem_error& e) {
    return end_with("", e.path1().string() + ": " + e.code().message(), 2);
  } catch (const std::system_error& e) {
    return end_with(verb, "the system refused: " + e.code().message(), 2);
  } catch (const std::exception& e) {
    return end_with(verb, std::string("a fault in the program itself: ") + e.what(), 1);
  }
}

// The exit status of f(), with what it throws printed.
template <class F>
int ended(const char* verb, const F& f) {
  try {
    return f();
  } catch (const CheckFailed& e) {
    std::fprintf(stderr, "weft: %s\n", e.what());
    return 1;
  } catch (const Error& e) {
    std::fprintf(stderr, "weft: %s\n", e.what());
    return 2;
  } catch (...) {
    return end_of_library(verb);
  }
}

}  // namespace

int main(int argc, char** argv) {
  hold_standard_descriptors();
  choose_environment(argv);
  note_failed_allocations();
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of its writer
  std::signal(SIGPIPE, SIG_IGN);  // and so is a pipe that nobody reads
  // Nothing of usual length is written before the flush that says how it went.
  static char printed[1 << 20];
  if (!isatty(STDOUT_FILENO)) std::setvbuf(stdout, printed, _IOFBF, sizeof printed);
  const char* const verb = argc > 1 ? argv[1] : "";
  const int status = ended(verb, [&] { return run(argc, argv); });
  return status != 0 ? status : ended(verb, [] { return flush_output(), 0; });
}
