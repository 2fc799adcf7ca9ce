// The command lines of the verbs about operations; what they do stands in certificate, op and bench.
#include "train/verbs_kernels.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "train/bench.h"
#include "train/certificate.h"
#include "train/op.h"

namespace weft::train {
namespace {

void add_gradcheck(CLI::App& app, int& status) {
  const auto a = std::make_shared<GradcheckArguments>();
  CLI::App* verb = app.add_subcommand(
      "gradcheck", "check every gradient against differences and the definition");
  verb->footer(
      "Example:\n  weft gradcheck --op attention --op delta\n"
      "  weft gradcheck --op delta --case packed\n"
      "Exits with 1 if a check fails.");
  verb->add_option("--op", a->operations, "an operation (standard: all); may be repeated")
      ->type_name("NAME")
      ->take_all()
      ->allow_extra_args(false);
  verb->add_option("--case", a->case_text, "only the cases whose name holds it")->type_name("TEXT");
  verb->add_option("--device", a->device, "cpu, cuda or auto")->capture_default_str();
  verb->add_flag("--json", a->json, "print JSON instead of a table");
  verb->add_option("--junit", a->junit, "also write the checks as JUnit XML")->type_name("FILE");
  verb->callback([a, &status] { status = run_gradcheck(*a, std::cout); });
}

// An operation's options are flags too, so the words are read by op_arguments().
void add_op(CLI::App& app, int& status) {
  CLI::App* verb =
      app.add_subcommand("op", "run one operation on the tensors of an HDF5 file, or check one");
  verb->set_help_flag();
  verb->prefix_command();
  verb->callback([verb, &status] {
    const std::vector<std::string> words = verb->remaining();
    status = run_op(op_arguments(words), std::cout);
  });
}

void add_bench(CLI::App& app, int& status) {
  const auto a = std::make_shared<BenchArguments>();
  CLI::App* verb = app.add_subcommand("bench", "time operations over a ladder of lengths");
  verb->footer(
      "Example:\n  weft bench linear delta --lengths 2048,4096\n"
      "  weft bench attention --set window=256\n"
      "OMP_NUM_THREADS sets the threads.");
  verb->add_option("names", a->names, "operations (standard: the mechanisms)");
  verb->add_option("--lengths", a->lengths, "lengths T (standard: 512,1024,2048,4096,8192)")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb->add_option("--set", a->set, "an option of the operation; may be repeated")
      ->type_name("OPTION=VALUE")
      ->take_all()
      ->allow_extra_args(false);
  verb->add_option("--without", a->without, "leave out an optional input, as g of linear")
      ->type_name("INPUT")
      ->take_all()
      ->allow_extra_args(false);
  verb->add_option("--budget", a->budget, "seconds of repeats a figure")->capture_default_str();
  verb->add_option("--device", a->device, "cpu; cuda: the kernel table, on shapes of real models")
      ->capture_default_str();
  verb->add_option("--peers", a->peers, "with cuda: times of tests/peers/cuda_ops.py, to compare")
      ->type_name("FILE");
  verb->add_flag("--json", a->json, "print a JSON object a line instead of a table");
  verb->callback([a, &status] { status = run_bench(*a, std::cout); });
}

}  // namespace

void add_kernel_verbs(CLI::App& app, int& status) {
  add_gradcheck(app, status);
  add_op(app, status);
  add_bench(app, status);
}

}  // namespace weft::train
