#include "train/pages/page.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "core/units.h"
#include "train/pages/script.h"

namespace weft::train {
namespace {

constexpr size_t kMostBytes = 3'000'000;
constexpr std::string_view kMark = "made by weft";

constexpr std::string_view kPageStyle = R"css(
body{margin:0 auto;max-width:1720px;padding:1rem;font:16px/1.45 system-ui,sans-serif;
 background:var(--paper);color:var(--ink)}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.1rem;margin:1.2rem 0 .4rem}
h3{font-size:.95rem;font-weight:600;margin:.4rem 0}
p{margin:.3rem 0;max-width:75ch}
a{color:var(--c0)}
svg{display:block;width:100%;height:auto}
svg:focus-visible,button:focus-visible,input:focus-visible,summary:focus-visible{
 outline:2px solid var(--c0);outline-offset:2px}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr))}
.pair{display:grid;gap:1rem;align-items:start;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,34rem),1fr))}
.pair .grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,16rem),1fr))}
.heads{display:grid;gap:.6rem;grid-template-columns:repeat(auto-fill,minmax(min(45%,11rem),1fr))}
figure{margin:0;min-width:0;break-inside:avoid}
h1{overflow-wrap:anywhere}
figcaption{font-size:.85rem;color:var(--soft)}
fieldset{border:1px solid var(--line);border-radius:.4rem;display:inline-block;
 margin:.2rem .4rem .2rem 0}
label{margin-right:.7rem;white-space:nowrap}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
small{white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:nowrap}
.key{display:inline-block;width:1.4em;height:.25em;margin-right:.4em;vertical-align:middle;
 background:currentColor}
output{display:block;min-height:1.4em;font-size:.85rem;font-variant-numeric:tabular-nums}
.open{all:unset;display:block;cursor:zoom-in;width:100%}
.open:focus-visible{outline:2px solid var(--c0)}
dialog{background:var(--paper);color:var(--ink);border:1px solid var(--line);
 width:min(96vw,60rem);max-width:none;max-height:96vh;box-sizing:border-box;padding:.8rem}
dialog::backdrop{background:#0008}
dialog svg{max-height:78vh}
button{font:inherit;color:inherit;background:none;border:1px solid var(--line);border-radius:.3rem}
body:not(:has(#against-steps:checked)) .against-steps,
body:not(:has(#against-tokens:checked)) .against-tokens,
body:not(:has(#against-time:checked)) .against-time{display:none}
body:has(#curve-raw:checked) .smooth,body:has(#curve-smooth:checked) .raw{display:none}
@media print{body{max-width:none;font-size:11px;padding:0}.switches,output,dialog{display:none}
 .grid{grid-template-columns:1fr 1fr}.heads{grid-template-columns:repeat(4,1fr)}}
)css";

constexpr std::string_view kPictureStyle = R"css(
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1f23;--soft:#5b636d;--line:#d5dae0;
--none:#eceff2;
--c0:#1b6ca8;--c1:#c2410c;--c2:#187a3c;--c3:#8e44ad;--c4:#a16207;
--c5:#0f7d7d;--c6:#b4236b;--c7:#566170}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;--soft:#a3acb7;
--line:#363d46;--none:#262b32;--c0:#6cb6ff;--c1:#ff9a6b;--c2:#5fd38a;--c3:#d5a0f0;--c4:#e6c34a;
--c5:#52d1d1;--c6:#ff8fbe;--c7:#b3bdc9}}
svg{font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .soft{fill:var(--soft)}
svg .mid{text-anchor:middle}svg .end{text-anchor:end}
svg .grid-line{stroke:var(--line);stroke-width:1}
svg .curve{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}
svg .raw{stroke-width:1;stroke-opacity:.45}
svg .dots{fill:none;stroke:currentColor;stroke-width:8;stroke-linecap:round}
svg .paper{fill:var(--paper)}
svg .cells{fill:none;stroke:var(--c0);stroke-width:1;shape-rendering:crispEdges}
svg .less{stroke:var(--c1)}svg .unread{stroke:var(--none)}
svg .frame{fill:none;stroke:var(--line)}
svg .cursor{fill:none;stroke:var(--ink)}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.c4{color:var(--c4)}
.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}
svg .curve.c4,svg .curve.c5,svg .curve.c6,svg .curve.c7{stroke-dasharray:6 3}
)css";

// The first bytes of a file say whose it is.
bool is_ours(const std::string& path) {
  std::string head(512, '\0');
  std::ifstream in(path, std::ios::binary);
  in.read(head.data(), static_cast<std::streamsize>(head.size()));
  head.resize(static_cast<size_t>(in.gcount()));
  return head.empty() || head.find(kMark) != std::string::npos ||
         head.find("\"made_by\":\"weft ") != std::string::npos;
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_character(text.substr(i));
    const auto c = static_cast<unsigned char>(text[i]);
    if (n == 0 || c < 32 || c == 127) {
      out += "\\x" + std::string(1, "0123456789ABCDEF"[c >> 4]) + "0123456789ABCDEF"[c & 15];
      ++i;
      continue;
    }
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else
      out += text.substr(i, n);
    i += n;
  }
  return out;
}

std::string json_inside(const nlohmann::ordered_json& value) {
  std::string out;
  for (const char c : json_line(value)) out += c == '<' ? "\\u003c" : std::string(1, c);
  return out;
}

std::string_view picture_style() { return kPictureStyle; }

std::string Page::text() const {
  std::string t = concat("<!doctype html>\n<!-- ", kMark, " ", verb, " -->\n<html lang=\"en\">\n");
  t += "<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n";
  // Nothing is fetched, whatever the text says.
  t += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
       "'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n";
  t += concat("<title>", escaped(title), "</title>\n<style>", kPictureStyle, kPageStyle, more_style,
              "</style>\n<body>\n<h1>", escaped(title), "</h1>\n");
  if (!note.empty()) t += concat("<p>", escaped(note), "</p>\n");
  t += body;
  if (data)
    t +=
        concat("<script type=\"application/json\" id=\"data\">", json_inside(*data), "</script>\n");
  t += concat("<script>", page_script(), more_script, "</script>\n</body>\n</html>\n");
  return t;
}

std::string picture(const std::string& verb, const std::string& label, double width, double height,
                    const std::string& inside) {
  const std::string w = number_text("%.6g", width), h = number_text("%.6g", height);
  return concat("<!-- ", kMark, " ", verb, " -->\n<svg xmlns=\"http://www.w3.org/2000/svg\" ",
                "viewBox=\"0 0 ", w, " ", h, "\" width=\"", w, "\" height=\"", h,
                "\" role=\"img\" aria-label=\"", escaped(label), "\">\n<style>", kPictureStyle,
                "</style>\n<rect class=\"paper\" width=\"", w, "\" height=\"", h, "\"/>\n", inside,
                "</svg>\n");
}

void require_page_output(const std::string& path, const std::vector<std::string>& inputs,
                         bool overwrite) {
  require_output(path, inputs);
  std::error_code ignored;
  if (overwrite || !std::filesystem::is_regular_file(path, ignored)) return;
  require(is_ours(path), path,
          ": is there, and was not made by this program; replace it with --overwrite, or name "
          "another file with --out");
}

void write_page(const std::string& path, const std::string& text, const std::string& shorter) {
  require(text.size() <= kMostBytes, path, ": would have ", bytes_text(double(text.size())),
          ", expected at most 3 MB; ", shorter);
  write_file(path, text);
}

}  // namespace weft::train
