#include "train/lessons/lesson_page.h"

#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "train/lessons/formula.h"
#include "train/lessons/lesson_script.h"
#include "train/lessons/lesson_sections.h"
#include "train/lessons/run.h"
#include "train/pages/page.h"

namespace weft::train {
namespace {

using namespace kernels;
using nlohmann::ordered_json;

std::string section(const std::string& id, const std::string& title, const std::string& body) {
  return concat("<section id=\"", id, "\">\n<h2>", title, "</h2>\n", body, "</section>\n");
}

ordered_json equations_json(const std::string& text) { return json_of(equations_of(text)); }

ordered_json data_of(const Lesson& l) {
  ordered_json j;
  j["inputs"] = json_of(example_numbers(l));
  j["forms"] = ordered_json::array();
  for (const LessonForm& f : l.forms) j["forms"].push_back(equations_json(f.equations));
  j["gradient"] = equations_json(l.gradient.equations);
  j["sliders"] = ordered_json::array();
  for (const Slider& s : l.sliders)
    j["sliders"].push_back({{"name", s.name}, {"token", s.token}, {"entry", s.entry}});
  j["checks"] = ordered_json::array();
  for (const std::vector<double>& places : checked_places(l)) {
    const Values example = placed(l, places);
    ordered_json check{{"at", places}, {"want", ordered_json::array()}};
    for (size_t i = 0; i < l.forms.size(); ++i)
      check["want"].push_back(json_of(program_numbers(l, i, example)));
    check["gradients"] = json_of(operation_gradients(l, example));
    j["checks"].push_back(check);
  }
  j["experiments"] = ordered_json::array();
  for (const Experiment& e : l.experiments) {
    ordered_json one{{"equations", equations_json(e.equations)},
                     {"knobs", ordered_json::array()},
                     {"curves", ordered_json::array()}};
    Values want = solved_experiment(e, first_places(e)), kept;
    for (const Experiment::Knob& k : e.knobs) one["knobs"].push_back(k.name);
    for (const Experiment::Curve& c : e.curves) {
      one["curves"].push_back({{"name", c.name}, {"dots", c.dots}});
      kept[c.name] = want.at(c.name);
    }
    one["want"] = json_of(kept);
    j["experiments"].push_back(one);
  }
  return j;
}

struct Section {
  std::string id, title, body;
};

std::string navigation(const std::vector<Section>& sections) {
  std::string s = "<nav class=\"switches\" aria-label=\"sections\"><ol>\n";
  for (const Section& one : sections)
    s += concat("<li><a href=\"#", one.id, "\">", one.title, "</a></li>\n");
  return s + "</ol></nav>\n";
}

std::vector<Section> sections_of(const Lesson& l, const LessonSurroundings& around) {
  if (l.operation.empty()) {
    std::vector<Section> list = {{"problem", "What it is about", with_formulas(l.problem)},
                                 {"forms", "Step by step", forms_section(l)}};
    if (l.measure) list.push_back({"measured", "On this machine", l.measure(around.budget)});
    if (!l.recipe.empty()) list.push_back({"reads", "What it reads of a text", around.reads});
    list.push_back({"names", "Where it is in the code", names_section(l)});
    list.push_back({"exercises", "Exercises", exercises_section(l)});
    return list;
  }
  return {{"problem", "What problem it solves", with_formulas(l.problem)},
          {"equations", "The equations, and their names in the code", equations_section(l)},
          {"forms", "Three forms, step by step", forms_section(l)},
          {"gradient", "The gradient, derived and checked", gradient_section(l)},
          {"gpu", "What a GPU does with it", gpu_section(l, around.budget)},
          {"cost", "Cost against length", cost_section(l, around.times)},
          {"reads", "What it reads of a text", around.reads},
          {"exercises", "Exercises", exercises_section(l)}};
}

// The parts of the index, by the lesson with which they begin.
const std::map<std::string, std::string> kParts = {{"attention", "To look things up"},
                                                   {"linear", "A memory of fixed size"},
                                                   {"delta", "A memory that corrects itself"},
                                                   {"mamba", "A memory that leaks"},
                                                   {"state", "What stands around them"}};

// The lesson that is read next; empty behind the last.
std::string next_of(const Lesson& l) {
  const std::vector<Lesson>& all = lessons();
  for (size_t i = 0; i + 1 < all.size(); ++i)
    if (all[i].name == l.name)
      return concat("<p>Next: <a href=\"", lesson_file(all[i + 1].name), "\">",
                    escaped(all[i + 1].title), "</a>.</p>\n");
  return "";
}

}  // namespace

std::vector<std::string> lesson_sections(const Lesson& l) {
  std::vector<std::string> ids;
  for (const Section& s : sections_of(l, {})) ids.push_back(s.id);
  return ids;
}

std::string lesson_file(const std::string& name) { return concat("lesson-", name, ".html"); }

std::string lesson_page(const Lesson& l, const LessonSurroundings& around) {
  Page page{"lesson", l.title, l.summary, "", nullptr};
  const std::vector<Section> sections = sections_of(l, around);
  std::vector<std::string> links;
  for (const std::string& name : l.first)
    links.push_back(concat("<a href=\"", lesson_file(name), "\">", escaped(lesson(name).title),
                           "</a> (<code>weft lesson ", name, "</code> makes that page)"));
  if (!links.empty()) page.body += concat("<p>Read before: ", joined(links), ".</p>\n");
  page.body += navigation(sections);
  for (size_t i = 0; i < sections.size(); ++i)
    page.body += section(sections[i].id, concat(i + 1, ". ", sections[i].title), sections[i].body);
  page.body += next_of(l);
  ordered_json data = around.data ? *around.data : ordered_json::object();
  data["lesson"] = data_of(l);
  page.data = &data;
  page.more_style = lesson_style();
  page.more_script = lesson_script();
  return page.text();
}

std::string lesson_index() {
  std::string body =
      "<p>Each lesson on a mechanism teaches one way for the tokens of a text to learn from each "
      "other: the problem, the equations, three forms of one computation with numbers that you can "
      "change, the gradient, the cost, and exercises that the program marks. The last lessons are "
      "on "
      "what stands around the mechanisms. Nothing but school mathematics is needed. Read them from "
      "the top; each says which ones it builds on.</p>\n";
  std::vector<std::vector<std::string>> rows;
  const auto end_part = [&] {
    if (!rows.empty())
      body += lesson_table({"", "lesson", "in one sentence, and the command"}, rows, "names");
    rows.clear();
  };
  for (size_t i = 0; i < lessons().size(); ++i) {
    const Lesson& l = lessons()[i];
    if (const auto part = kParts.find(l.name); part != kParts.end()) {
      end_part();
      body += concat("<h2>", part->second, "</h2>\n");
    }
    rows.push_back({std::to_string(i + 1),
                    concat("<a href=\"", lesson_file(l.name), "\">", escaped(l.title), "</a>"),
                    concat(escaped(l.summary), "<br><code>weft lesson ", l.name, "</code>")});
  }
  end_part();
  Page page{"lesson", "Lessons", "", "", nullptr};
  page.body =
      body +
      "<p>A link leads to a page beside this one. The command in its row writes that page.</p>\n";
  const std::string style = concat(lesson_style(), "td code{white-space:nowrap}\n");
  page.more_style = style;
  return page.text();
}

}  // namespace weft::train
