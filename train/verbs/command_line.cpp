#include "train/verbs/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iostream>
#include <memory>

#include "core/text.h"
#include "train/exchange/architecture.h"
#include "train/exchange/export.h"
#include "train/exchange/import.h"
#include "train/verbs/doctor.h"
#include "train/verbs/manual_table.h"
#include "train/verbs/verbs.h"
#include "train/workbench/bench.h"
#include "train/workbench/bench_diff.h"
#include "train/workbench/cases.h"
#include "train/workbench/certificate.h"
#include "train/workbench/features.h"
#include "train/workbench/judge.h"
#include "train/workbench/op.h"

namespace weft::train {
namespace {

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

void add_ranks(CLI::App* verb, RankArguments& a) {
  verb->add_option("--ranks", a.ranks, "share the work among so many processes on the CPU")
      ->check(in_64_bits);
  verb->add_option("--gpus", a.gpus, "share the work among so many GPUs, or all")->type_name("N");
}

struct Arguments {
  TrainArguments train;
  EvalArguments eval;
  GenerateArguments generate;
  InspectArguments inspect;
  DataArguments data;
  DoctorArguments doctor;
  ReplayArguments replay;
  LogitsArguments logits;
  PlotArguments plot;
  ShowArguments show;
  LessonArguments lesson;
  CompareArguments compare;
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
  verb->add_option("--begin", a.begin,
                   "a new run begins with the parameters of this checkpoint, as of weft import");
  verb->add_option("--profile", a.profile,
                   "write a trace of a few steady steps on a GPU (Perfetto)")
      ->type_name("FILE");
  verb->add_flag("--page", a.page,
                 "keep the page OUT/plot.html of its curves current while the run goes on");
  verb->add_flag("--overwrite", a.overwrite,
                 "start anew where an earlier run lies; with --from: give up what came after it");
  add_device(verb, a.device);
  add_ranks(verb, a.ranks);
  verb->callback([&] { status = run_train(a); });
}

void add_eval(CLI::App& app, EvalArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("eval", "loss of a checkpoint on held-out text");
  verb->footer("Example:\n  weft eval runs/quickstart/best.h5 --data book.txt");
  verb->add_option("checkpoint", a.checkpoint, "a checkpoint, or the folder of a run")->required();
  verb->add_option("--data", a.data, "a text file or folder (standard: the run's held-out part)");
  verb->add_option("--batches", a.batches, "how many batches (standard: all)")->check(in_64_bits);
  verb->add_flag("--ablate", a.ablate,
                 "also without its softmax layers, without its linear layers, and what it recalls");
  add_device(verb, a.device);
  add_ranks(verb, a.ranks);
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
  verb->add_option("--ranks", a.ranks, "the memory of each of so many ranks")
      ->check(CLI::Range(1, 4096));
  add_device(verb, a.device);
  verb->callback([&] { status = run_inspect(a); });
}

void add_data(CLI::App& app, DataArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("data", "make a token dataset from text, or describe one");
  verb->footer(
      "Example:\n  weft data books/ more.txt --tokenizer sentencepiece --vocabulary 4096 "
      "--out books.h5\n  weft data pages.jsonl.zst --field text --out pages.h5\n"
      "  weft data --describe books.h5");
  verb->add_option("sources", a.sources, "text files, folders, or kjv");
  verb->add_option("--out", a.out, "the dataset to write (HDF5)");
  verb->add_option(
          "--tokenizer", a.tokenizer,
          "bytes, sentencepiece, or a file: tokenizer.json, a model of SentencePiece, or a "
          "vocabulary of llm.c")
      ->capture_default_str();
  verb->add_option("--vocabulary", a.vocabulary, "size of a trained vocabulary")
      ->capture_default_str()
      ->check(in_64_bits);
  verb->add_option("--document", a.document, "what a document is: file, blank (line) or line")
      ->capture_default_str();
  verb->add_option("--field", a.field, "files hold JSON lines; this field of each is a document");
  verb->add_option("--describe", a.describe, "print what a dataset holds");
  verb->callback([&] { status = run_data(a); });
}

void add_replay(CLI::App& app, ReplayArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand(
      "replay", "write a run's first parameters and batches, for another framework to follow it");
  verb->footer("Example:\n  weft replay recipes/gpt.toml --steps 500 --out gpt.h5");
  verb->add_option("recipe", a.recipe, "the recipe, a TOML file")->required();
  add_set(verb, a.set);
  verb->add_option("--steps", a.steps, "steps whose batches are written")
      ->capture_default_str()
      ->check(in_64_bits);
  verb->add_option("--out", a.out, "the file to write (HDF5)")->required();
  verb->callback([&] { status = run_replay(a); });
}

void add_logits(CLI::App& app, LogitsArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("logits", "what a checkpoint predicts for given tokens");
  verb->footer(
      "Example:\n  weft logits runs/quickstart tokens.h5 logits.h5\n"
      "tokens.h5 holds tokens, i32 [B, T], and may hold cu_seqlens; logits.h5 gets logits [B, T, "
      "V].");
  verb->add_option("checkpoint", a.checkpoint, "a checkpoint, or the folder of a run")->required();
  verb->add_option("in", a.in, "the file with the tokens (HDF5)")->required();
  verb->add_option("out", a.out, "the file to write (HDF5)")->required();
  verb->add_option("--dtype", a.dtype,
                   "compute in f32; f64 on the CPU; bf16 on a GPU (standard: the recipe's)");
  add_device(verb, a.device);
  verb->callback([&] { status = run_logits(a); });
}

void add_import(CLI::App& app, int& status) {
  const auto a = std::make_shared<ImportArguments>();
  CLI::App* verb = app.add_subcommand(
      "import", "make a checkpoint of a model in the format of Hugging Face's libraries");
  verb->footer(
      "Example:\n  weft import Qwen3-0.6B qwen3.h5 --recipe qwen3.toml\n"
      "  weft train qwen3.toml --begin qwen3.h5 --set data.dataset=text.h5\n"
      "Formats: " +
      joined(architecture_names()) + ".");
  verb->add_option("folder", a->folder, "a folder with config.json and model.safetensors")
      ->required();
  verb->add_option("out", a->out, "the checkpoint to write (HDF5)")->required();
  verb->add_option("--recipe", a->recipe, "write the recipe of the model too")->type_name("FILE");
  verb->add_option("--dtype", a->dtype, "of the parameters: f32, f64 or bf16")
      ->capture_default_str();
  verb->callback([a, &status] { status = run_import(*a); });
}

void add_export(CLI::App& app, int& status) {
  const auto a = std::make_shared<ExportArguments>();
  CLI::App* verb = app.add_subcommand(
      "export", "write a checkpoint's model as Hugging Face's libraries load it");
  verb->footer("Example:\n  weft export runs/llama llama --dtype bf16\nFormats: " +
               joined(architecture_names()) + ".");
  verb->add_option("checkpoint", a->checkpoint, "a checkpoint, or the folder of a run")->required();
  verb->add_option("folder", a->folder, "the folder to make: new or empty")->required();
  verb->add_option("--as", a->as, "a format (standard: the first that expresses the recipe)")
      ->type_name("NAME");
  verb->add_option("--dtype", a->dtype,
                   "of the tensors: f32, f64 or bf16 (standard: the checkpoint's)");
  verb->callback([a, &status] { status = run_export(*a); });
}

void add_convert(CLI::App& app, int& status) {
  const auto a = std::make_shared<ConvertArguments>();
  CLI::App* verb = app.add_subcommand(
      "convert", "make a trained checkpoint the start of a model with other mixers");
  verb->footer(
      "Example:\n  weft convert runs/teacher student.toml --out start.h5\n"
      "  weft train student.toml --begin start.h5");
  verb->add_option("teacher", a->teacher, "a checkpoint, or the folder of a run")->required();
  verb->add_option("recipe", a->recipe, "the student's recipe, a TOML file")->required();
  add_set(verb, a->set);
  verb->add_option("--out", a->out, "the checkpoint to write (HDF5)")->type_name("FILE");
  verb->add_flag("--dry-run", a->dry_run, "print what would come from where, and write nothing");
  verb->callback([a, &status] { status = run_convert(*a); });
}

void add_page(CLI::App* verb, std::string& out, const char* standard, bool& overwrite) {
  verb->add_option("--out", out, concat("the file to write (standard: ", standard, ")"))
      ->type_name("FILE");
  verb->add_flag("--overwrite", overwrite, "replace a file that this program did not make");
}

void add_plot(CLI::App& app, PlotArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("plot", "a page of the curves of one or more runs");
  verb->footer(
      "Example:\n  weft plot runs/quickstart runs/gpt --out runs.html\n"
      "  weft plot runs/quickstart --svg --against tokens\n"
      "  weft plot runs/quickstart --csv --metric loss");
  verb->add_option("runs", a.runs, "folders of runs, or their metrics.jsonl")->required();
  verb->add_option("--against", a.against, "steps, tokens or time; the page can switch")
      ->capture_default_str();
  verb->add_option("--metric", a.metric, "this metric alone (standard: all; a picture: loss)");
  verb->add_flag("--svg", a.svg, "write a picture instead of a page");
  verb->add_flag("--csv", a.csv, "write CSV: run, metric, step, tokens, seconds, value");
  verb->add_flag("--json", a.json, "write JSON");
  verb->add_flag("--tensorboard", a.tensorboard,
                 "write event files of TensorBoard to the folder --out (standard: tensorboard)");
  add_page(verb, a.out, "plot.html, or plot.svg; CSV and JSON: standard output", a.overwrite);
  verb->callback([&] { status = run_plot(a); });
}

void add_show(CLI::App& app, ShowArguments& a, int& status) {
  CLI::App* verb =
      app.add_subcommand("show", "a page of what each head of a model reads of a text");
  verb->footer(
      "Example:\n  weft show runs/quickstart --text \"In the beginning\"\n"
      "  weft show runs/attention runs/mamba --text \"In the beginning\" --layer 1 --head 0 --svg");
  verb->add_option("checkpoints", a.checkpoints, "checkpoints, or folders of runs")->required();
  verb->add_option("--text", a.text, "the text that is read")->required();
  verb->add_option("--layer", a.layer, "this layer alone, from 0 (standard: all)")
      ->check(in_64_bits);
  verb->add_option("--head", a.head, "this head alone, from 0 (standard: all)")->check(in_64_bits);
  verb->add_option("--channel", a.channel,
                   "of a scan: this channel (standard: the mean over its channels)")
      ->check(in_64_bits);
  verb->add_flag("--svg", a.svg, "write a picture instead of a page");
  verb->add_flag("--json", a.json, "write JSON");
  add_page(verb, a.out, "show.html, or show.svg; JSON: standard output", a.overwrite);
  verb->callback([&] { status = run_show(a); });
}

void add_lesson(CLI::App& app, LessonArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand("lesson", "a page that teaches a mechanism, with exercises");
  verb->footer(
      "Example:\n  weft lesson\n  weft lesson delta --text \"In the beginning\"\n"
      "  weft lesson delta --check answers.txt\n"
      "With --check it exits with 1 if an answer is not right.");
  verb->add_option("name", a.name, "a lesson (standard: a page that lists all)");
  verb->add_option("--text", a.text, "a text that the mechanism reads on the page");
  verb->add_option("--model", a.model, "a checkpoint, or the folder of a run, that reads it")
      ->type_name("RUN");
  verb->add_option("--check", a.check, "mark these answers: lines \"1 = 0.25\", or an HDF5 file")
      ->type_name("FILE");
  verb->add_option("--budget", a.budget, "seconds of repeats a time; 0: time nothing")
      ->capture_default_str();
  add_page(verb, a.out, "lesson-NAME.html, or lessons.html", a.overwrite);
  verb->callback([&] { status = run_lesson(a); });
}

void add_compare(CLI::App& app, CompareArguments& a, int& status) {
  CLI::App* verb = app.add_subcommand(
      "compare", "train recipes on the same data, tokens and seeds; a page of what came out");
  verb->footer(
      "Example:\n  weft compare recipes/delta.toml recipes/mamba.toml --tokens 500000 --seeds 3\n"
      "The same command goes on where it was stopped; finished runs stay.");
  verb->add_option("recipes", a.recipes, "the recipes, TOML files")->required();
  add_set(verb, a.set);
  verb->add_option("--with", a.with,
                   "a TOML file of settings for every recipe, as a task and its length; several "
                   "files make a table of recipes and files");
  verb->add_option("--tokens", a.tokens, "tokens of training for each run (standard: the first's)")
      ->check(in_64_bits);
  verb->add_option("--seeds", a.seeds, "runs of each recipe, from seeds 1, 2, ...")
      ->capture_default_str()
      ->check(in_64_bits);
  verb->add_option("--out", a.out, "the folder of the runs, compare.html and compare.json")
      ->capture_default_str();
  verb->add_flag("--overwrite", a.overwrite, "train anew what lies in that folder");
  add_device(verb, a.device);
  verb->callback([&] { status = run_compare(a); });
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

void add_dtypes(CLI::App* verb, std::vector<std::string>& dtypes, const char* standard) {
  verb->add_option("--dtype", dtypes, concat("f64, f32, bf16 (standard: ", standard, ")"))
      ->delimiter(',')
      ->allow_extra_args(false);
}

void add_cases(CLI::App& app, int& status) {
  const auto a = std::make_shared<CasesArguments>();
  CLI::App* verb = app.add_subcommand(
      "cases", "write the cases of gradcheck to files, for a kernel of your own to answer");
  verb->footer(
      "Example:\n  weft cases delta kda cases/\n  weft cases all cases/ --dtype f32,bf16\n"
      "The folder must be new or empty. cases.json in it says what comes back and where.");
  verb->add_option("words", a->words, "operations, or all; then the folder to make")
      ->required()
      ->type_name("OPERATION... DIR");
  verb->add_option("--case", a->case_text, "only the cases whose name holds it")->type_name("TEXT");
  add_dtypes(verb, a->dtypes, "all three");
  verb->callback([a, &status] { status = run_cases(*a, std::cout); });
}

void add_judge(CLI::App& app, int& status) {
  const auto a = std::make_shared<JudgeArguments>();
  CLI::App* verb = app.add_subcommand(
      "judge", "hold the answers of a kernel of your own to the definition and its bounds");
  verb->footer(
      "Example:\n  weft judge cases/\n  weft judge cases/ --dtype bf16 --junit judge.xml\n"
      "Exits with 1 if an answer is wrong or missing, or if nothing was answered.");
  verb->add_option("folder", a->folder, "the folder that weft cases made, with answers in results/")
      ->required()
      ->type_name("DIR");
  add_dtypes(verb, a->dtypes, "those of the folder");
  verb->add_flag("--all", a->all, "an answer that was declined fails too");
  verb->add_flag("--json", a->json, "print JSON instead of a table");
  verb->add_option("--junit", a->junit, "also write the checks as JUnit XML")->type_name("FILE");
  verb->callback([a, &status] { status = run_judge(*a, std::cout); });
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
      "  weft bench --diff before.jsonl after.jsonl\n"
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
  const auto diff = std::make_shared<std::vector<std::string>>();
  verb->add_option("--diff", *diff, "compare two saved outputs of --json, and time nothing")
      ->type_name("BEFORE AFTER")
      ->expected(2);
  verb->callback([a, diff, &status] {
    if (diff->empty()) {
      status = run_bench(*a, std::cout);
      return;
    }
    require(a->names.empty() && a->lengths.empty() && a->set.empty() && a->without.empty() &&
                a->peers.empty(),
            "bench --diff compares two files and times nothing; leave out operations and their "
            "flags");
    status = run_bench_diff(diff->front(), diff->back(), a->json, std::cout);
  });
}

void add_features(CLI::App& app, int& status) {
  const auto a = std::make_shared<FeaturesArguments>();
  CLI::App* verb =
      app.add_subcommand("features", "show how well random features stand for softmax attention");
  verb->footer("Example:\n  weft features --width 64 --features 64,256\n  weft features --size 2");
  verb->add_option("--width", a->width, "numbers of a query and a key")->capture_default_str();
  verb->add_option("--features", a->features, "rows of a projection (standard: 16,64,256,1024)")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb->add_option("--size", a->size, "deviation of the numbers of queries and keys")
      ->capture_default_str();
  verb->add_option("--pairs", a->pairs, "pairs of a query and a key")->capture_default_str();
  verb->add_option("--draws", a->draws, "projections that are drawn")->capture_default_str();
  verb->add_option("--seed", a->seed, "of pairs and projections")->capture_default_str();
  verb->add_flag("--json", a->json, "print a JSON object a line instead of a table");
  verb->callback([a, &status] { status = run_features(*a, std::cout); });
}

// For packages: what a system keeps of the program beside the program.
void add_manual(CLI::App& app, int& status) {
  const auto kind = std::make_shared<std::string>();
  CLI::App* verb =
      app.add_subcommand("manual", "print the manual page, or the completion for a shell");
  verb->footer(
      "Example:\n  weft manual man | man -l -\n"
      "  weft manual bash > ~/.local/share/bash-completion/completions/weft");
  verb->add_option("kind", *kind, "one of " + joined(manual_kinds()))->required();
  verb->callback([&app, kind, &status] {
    std::cout << manual_as(*kind, manual_of(app));
    status = 0;
  });
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

}  // namespace

int run_command(int argc, char** argv) {
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
  add_import(app, status);
  add_export(app, status);
  add_convert(app, status);
  add_replay(app, a.replay, status);
  add_logits(app, a.logits, status);
  add_plot(app, a.plot, status);
  add_show(app, a.show, status);
  add_lesson(app, a.lesson, status);
  add_compare(app, a.compare, status);
  add_gradcheck(app, status);
  add_cases(app, status);
  add_judge(app, status);
  add_op(app, status);
  add_bench(app, status);
  add_features(app, status);
  add_doctor(app, a.doctor, status);
  app.set_version_flag("--version", WEFT_VERSION, "what `weft version` prints");
  add_version(app, status);
  add_manual(app, status);
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

}  // namespace weft::train
