// A page of its own: HTML with its style, its script, its pictures and its data inside, so that it
// opens without a network. It is light or dark as the reader's system is, and can be printed and
// used by keyboard. Text that comes from outside goes through escaped() or json_inside().
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace weft::train {

// Text as text of HTML and SVG, also within quotes. Bytes that are not UTF-8 and control characters
// are written as \xE9.
std::string escaped(std::string_view text);
// JSON as the content of a <script>: nothing in it ends the element.
std::string json_inside(const nlohmann::ordered_json& value);

struct Page {
  std::string verb;   // who made it: "plot"
  std::string title;  // plain text, as `note` is
  std::string note;
  std::string body;  // HTML
  nlohmann::ordered_json* data = nullptr;
  std::string_view more_style = {}, more_script = {};  // behind those of every page
  std::string text() const;
};

// Colours and lines of the pictures. In a page they are part of its style; a picture that stands
// alone brings them along.
std::string_view picture_style();

// An SVG that stands alone: `inside` within a frame of `width` x `height`.
std::string picture(const std::string& verb, const std::string& label, double width, double height,
                    const std::string& inside);

// What a verb may write over: nothing, an empty file, a device, or a file that says in its first
// bytes that Weft made it. Throws Error for any other unless `overwrite`, and for an input.
void require_page_output(const std::string& path, const std::vector<std::string>& inputs,
                         bool overwrite);
// Writes a page or a picture as a whole. Throws Error above 3 MB, with what to do.
void write_page(const std::string& path, const std::string& text, const std::string& shorter);

}  // namespace weft::train
