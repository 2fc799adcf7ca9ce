#include "train/verbs/manual.h"

#include <algorithm>

#include "core/error.h"
#include "core/text.h"

namespace weft::train {
namespace {

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

// --- The manual page -------------------------------------------------------------------------

// A text that troff takes as it is: no escapes, no requests, hyphens that can be copied.
std::string roff(const std::string& text) {
  std::string out = replaced(replaced(text, "\\", "\\e"), "-", "\\-");
  if (out.starts_with(".") || out.starts_with("'")) out = "\\&" + out;
  return replaced(replaced(out, "\n.", "\n\\&."), "\n'", "\n\\&'");
}

std::string title_of(const ManualFlag& f) {
  return "\\fB" + roff(f.name) + "\\fR" + (f.value.empty() ? "" : " \\fI" + roff(f.value) + "\\fR");
}

std::string list_of(const std::vector<ManualFlag>& flags) {
  std::string t;
  for (const ManualFlag& f : flags) t += ".TP\n" + title_of(f) + "\n" + roff(f.text) + "\n";
  return t;
}

// Lines as they are, examples among them.
std::string as_written(const std::string& text) {
  if (text.empty()) return "";
  return ".PP\n.nf\n" + roff(text) + "\n.fi\n";
}

std::string section_of(const ManualVerb& v) {
  std::string usage = "\\fBweft " + roff(v.name) + "\\fR";
  for (const ManualFlag& word : v.words) usage += " \\fI" + roff(word.name) + "\\fR";
  if (!v.flags.empty()) usage += " [flags]";
  return ".SS " + roff(v.name) + "\n" + usage + "\n.PP\n" + roff(v.text) + ".\n" +
         list_of(v.words) + list_of(v.flags) + as_written(v.footer);
}

// --- Shells ----------------------------------------------------------------------------------

// Between single quotes, where a shell changes nothing but the quote itself.
std::string quoted(const std::string& text) { return "'" + replaced(text, "'", "'\\''") + "'"; }
// fish knows two escapes there.
std::string fish_quoted(const std::string& text) {
  return "'" + replaced(replaced(text, "\\", "\\\\"), "'", "\\'") + "'";
}
// Within the brackets of _arguments and before the colons of _describe.
std::string zsh_text(const std::string& text) {
  std::string out = replaced(text, "\\", "\\\\");
  for (const char* mark : {"[", "]", ":"}) out = replaced(out, mark, std::string("\\") + mark);
  return out;
}

std::string names_of(const std::vector<ManualFlag>& flags) {
  std::vector<std::string> names;
  for (const ManualFlag& f : flags) names.push_back(f.name);
  return joined(names, " ");
}

std::vector<std::string> verb_names(const Manual& manual) {
  std::vector<std::string> names;
  for (const ManualVerb& v : manual.verbs) names.push_back(v.name);
  return names;
}

}  // namespace

std::string manual_page(const Manual& manual) {
  std::string t =
      ".TH WEFT 1 \"\" \"weft " + std::string(WEFT_VERSION) +
      "\"\n.SH NAME\nweft \\- train efficient\\-attention language models from recipes\n"
      ".SH SYNOPSIS\n\\fBweft\\fR \\fIverb\\fR [words] [flags]\n"
      ".SH DESCRIPTION\n" +
      roff(manual.text) +
      "\n.PP\n\\fBweft help\\fR \\fIverb\\fR shows the words and flags of a verb.\n.SH VERBS\n";
  for (const ManualVerb& v : manual.verbs) t += section_of(v);
  return t +
         ".SH EXIT STATUS\n.TP\n\\fB0\\fR\nDone.\n.TP\n\\fB1\\fR\nA check did not hold, or a fault "
         "of the program itself.\n.TP\n\\fB2\\fR\nA mistake in what was given, or a machine that "
         "has too little.\n.TP\n\\fB128 + n\\fR\nStopped by signal n after saving.\n";
}

std::string bash_completion(const Manual& manual) {
  std::string cases;
  for (const ManualVerb& v : manual.verbs)
    cases += "    " + v.name + ") flags=" + quoted(names_of(v.flags)) +
             " choices=" + quoted(joined(v.choices, " ")) + " ;;\n";
  return "# Completion of weft for bash.\n_weft() {\n"
         "  local word=${COMP_WORDS[COMP_CWORD]} flags='' choices=''\n"
         "  COMPREPLY=()\n"
         "  if ((COMP_CWORD == 1)); then\n"
         "    mapfile -t COMPREPLY < <(compgen -W " +
         quoted(joined(verb_names(manual), " ")) +
         " -- \"$word\")\n    return\n  fi\n"
         "  case ${COMP_WORDS[1]} in\n" +
         cases +
         "  esac\n"
         "  if [[ $word == -* ]]; then\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$flags\" -- \"$word\")\n"
         "  else\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$choices\" -- \"$word\"; compgen -f -- "
         "\"$word\")\n"
         "  fi\n}\ncomplete -o filenames -F _weft weft\n";
}

std::string zsh_completion(const Manual& manual) {
  std::string verbs, cases;
  for (const ManualVerb& v : manual.verbs) {
    verbs += "    " + quoted(zsh_text(v.name) + ":" + zsh_text(v.text)) + "\n";
    cases += "    " + v.name + ")\n      _arguments -s";
    for (const ManualFlag& f : v.flags)
      cases +=
          " \\\n        " + quoted(f.name + "[" + zsh_text(f.text) + "]" +
                                   (f.value.empty() ? "" : ":" + zsh_text(f.value) + ":_files"));
    if (!v.choices.empty())
      cases +=
          " \\\n        " + quoted("*:word:{ compadd -- " + joined(v.choices, " ") + "; _files }");
    else
      cases += " \\\n        '*:file:_files'";
    cases += " ;;\n";
  }
  return "#compdef weft\n# Completion of weft for zsh.\n_weft() {\n  local -a verbs=(\n" + verbs +
         "  )\n  if ((CURRENT == 2)); then\n    _describe verb verbs\n    return\n  fi\n"
         "  local verb=$words[2]\n  shift words\n  ((CURRENT--))\n  case $verb in\n" +
         cases + "  esac\n}\n_weft \"$@\"\n";
}

std::string fish_completion(const Manual& manual) {
  std::string t = "# Completion of weft for fish.\n";
  for (const ManualVerb& v : manual.verbs)
    t += "complete -c weft -f -n __fish_use_subcommand -a " + v.name + " -d " +
         fish_quoted(v.text) + "\n";
  for (const ManualVerb& v : manual.verbs) {
    const std::string in = "complete -c weft -n '__fish_seen_subcommand_from " + v.name + "'";
    for (const ManualFlag& f : v.flags)
      t += in + " -l " + f.name.substr(2) + (f.value.empty() ? "" : " -r") + " -d " +
           fish_quoted(f.text) + "\n";
    if (!v.choices.empty()) t += in + " -a " + fish_quoted(joined(v.choices, " ")) + "\n";
  }
  return t;
}

std::vector<std::string> manual_kinds() { return {"man", "bash", "zsh", "fish"}; }

std::string manual_as(const std::string& kind, const Manual& manual) {
  if (kind == "man") return manual_page(manual);
  if (kind == "bash") return bash_completion(manual);
  if (kind == "zsh") return zsh_completion(manual);
  if (kind == "fish") return fish_completion(manual);
  fail("manual: ", unknown_name("kind", kind, manual_kinds()));
}

}  // namespace weft::train
