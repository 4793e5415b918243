#include "core/json.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "core/file.h"

namespace tessera {
namespace {

// Builds our tree from nlohmann's events, so that its types stay in this file and depth is bounded while parsing.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return add(Json()); }
  bool boolean(bool v) override { return add(Json(v)); }
  bool number_integer(number_integer_t v) override { return add(Json(int64_t{v})); }
  bool number_unsigned(number_unsigned_t v) override {
    return add(v <= static_cast<uint64_t>(INT64_MAX) ? Json(static_cast<int64_t>(v)) : Json(uint64_t{v}));
  }
  bool number_float(number_float_t v, const string_t&) override { return add(Json(v)); }
  bool string(string_t& v) override { return add(Json(std::move(v))); }
  bool binary(binary_t&) override { return fail("binary value"); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& v) override {
    if (!stack_.back().keys.insert(v).second) return fail("repeated key \"" + v.substr(0, 80) + "\"");
    stack_.back().key = std::move(v);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    std::string what = e.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." : the library's tag tells users nothing.
    if (auto end = what.find("] "); end != std::string::npos) what = what.substr(end + 2);
    if (what.size() > 200) what.resize(200);
    for (char& c : what)
      if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
    error_ = what + " (byte " + std::to_string(position) + ")";
    return false;
  }

  const std::string& error() const { return error_; }
  Json take() { return std::move(root_); }

 private:
  struct Frame {
    Json value;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  bool fail(std::string message) {
    error_ = std::move(message);
    return false;
  }
  bool open(Json value) {
    if (static_cast<int>(stack_.size()) >= limits_.max_depth)
      return fail("nested deeper than " + std::to_string(limits_.max_depth) + " levels");
    stack_.push_back({std::move(value), {}, {}});
    return true;
  }
  bool close() {
    Json value = std::move(stack_.back().value);
    stack_.pop_back();
    return add(std::move(value));
  }
  bool add(Json value) {
    if (++values_ > limits_.max_values) return fail("more than " + std::to_string(limits_.max_values) + " values");
    if (stack_.empty()) {
      root_ = std::move(value);
    } else if (Frame& top = stack_.back(); top.value.is_object()) {
      top.value.as_object().emplace_back(std::move(top.key), std::move(value));
    } else {
      top.value.as_array().push_back(std::move(value));
    }
    return true;
  }

  JsonLimits limits_;
  std::vector<Frame> stack_;
  Json root_;
  size_t values_ = 0;
  std::string error_;
};

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

int unicode_escape(std::string_view text, size_t at) {
  if (at + 6 > text.size() || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int code = 0;
  for (size_t i = at + 2; i < at + 6; ++i) {
    int digit = hex_value(text[i]);
    if (digit < 0) return -1;
    code = code * 16 + digit;
  }
  return code;
}

std::string replace_unpaired_surrogates(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '\\' || i + 1 >= text.size()) {
      out += text[i++];
      continue;
    }
    int code = unicode_escape(text, i);
    if (code < 0) {
      out.append(text.substr(i, 2));
      i += 2;
    } else if (code >= 0xD800 && code < 0xDC00 && unicode_escape(text, i + 6) >= 0xDC00 &&
               unicode_escape(text, i + 6) < 0xE000) {
      out.append(text.substr(i, 12));
      i += 12;
    } else {
      if (code >= 0xD800 && code < 0xE000)
        out += "\\ufffd";
      else
        out.append(text.substr(i, 6));
      i += 6;
    }
  }
  return out;
}

void dump_string(const std::string& text, std::string& out) {
  out += '"';
  for (char ch : text) {
    auto c = static_cast<unsigned char>(ch);
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (c < 0x20 || c == 0x7f) {
          char buffer[8];
          std::snprintf(buffer, sizeof buffer, "\\u%04x", c);
          out += buffer;
        } else {
          out += ch;
        }
    }
  }
  out += '"';
}

void dump_double(double v, std::string& out) {
  if (!std::isfinite(v)) {
    out += "null";
    return;
  }
  char buffer[32];
  for (int precision : {15, 16, 17}) {  // the shortest that reads back the same
    std::snprintf(buffer, sizeof buffer, "%.*g", precision, v);
    if (std::strtod(buffer, nullptr) == v) break;
  }
  out += buffer;
  if (out.find_first_of(".eE", out.size() - std::char_traits<char>::length(buffer)) == std::string::npos) out += ".0";
}

void new_line(std::string& out, int indent, int depth) {
  if (indent <= 0) return;
  out += '\n';
  out.append(static_cast<size_t>(indent) * static_cast<size_t>(depth), ' ');
}

void dump_value(const Json& v, std::string& out, int indent, int depth) {
  if (v.is_null()) {
    out += "null";
  } else if (v.is_bool()) {
    out += v.as_bool() ? "true" : "false";
  } else if (v.fits_int64()) {
    out += std::to_string(v.as_int64());
  } else if (v.is_integer()) {
    out += std::to_string(v.as_uint64());
  } else if (v.is_number()) {
    dump_double(v.as_double(), out);
  } else if (v.is_string()) {
    dump_string(v.as_string(), out);
  } else if (v.is_array()) {
    out += '[';
    bool first = true;
    for (const Json& item : v.as_array()) {
      if (!first) out += ',';
      first = false;
      new_line(out, indent, depth + 1);
      dump_value(item, out, indent, depth + 1);
    }
    if (!first) new_line(out, indent, depth);
    out += ']';
  } else {
    out += '{';
    bool first = true;
    for (const auto& [key, value] : v.as_object()) {
      if (!first) out += ',';
      first = false;
      new_line(out, indent, depth + 1);
      dump_string(key, out);
      out += indent > 0 ? ": " : ":";
      dump_value(value, out, indent, depth + 1);
    }
    if (!first) new_line(out, indent, depth);
    out += '}';
  }
}

}  // namespace

Result<Json> Json::parse(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes)
    return invalid_input("JSON of " + std::to_string(text.size()) + " bytes exceeds the limit of " +
                         std::to_string(limits.max_bytes));
  Builder builder(limits);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder))
    return invalid_input("not valid JSON: " + builder.error());
  return builder.take();
}

Result<Json> Json::parse_lenient_surrogates(std::string_view text, const JsonLimits& limits) {
  return parse(replace_unpaired_surrogates(text), limits);
}

Result<Json> Json::parse_file(const std::string& path, const JsonLimits& limits) {
  TESSERA_ASSIGN_OR_RETURN(std::string text, read_file(path, limits.max_bytes));
  auto parsed = parse(text, limits);
  if (!parsed.ok()) return parsed.status().with_context(path);
  return parsed;
}

bool Json::as_bool() const { return std::get<bool>(value_); }

bool Json::fits_int64() const { return std::holds_alternative<int64_t>(value_); }

int64_t Json::as_int64() const { return std::get<int64_t>(value_); }

uint64_t Json::as_uint64() const {
  if (const auto* u = std::get_if<uint64_t>(&value_)) return *u;
  return static_cast<uint64_t>(std::get<int64_t>(value_));
}

double Json::as_double() const {
  if (const auto* i = std::get_if<int64_t>(&value_)) return static_cast<double>(*i);
  if (const auto* u = std::get_if<uint64_t>(&value_)) return static_cast<double>(*u);
  return std::get<double>(value_);
}

const std::string& Json::as_string() const { return std::get<std::string>(value_); }
const Json::Array& Json::as_array() const { return std::get<Array>(value_); }
Json::Array& Json::as_array() { return std::get<Array>(value_); }
const Json::Object& Json::as_object() const { return std::get<Object>(value_); }
Json::Object& Json::as_object() { return std::get<Object>(value_); }

const Json* Json::find(std::string_view key) const {
  if (!is_object()) return nullptr;
  for (const auto& [name, value] : as_object())
    if (name == key) return &value;
  return nullptr;
}

void Json::set(std::string key, Json value) {
  if (is_null()) value_ = Object{};
  for (auto& [name, old] : as_object())
    if (name == key) {
      old = std::move(value);
      return;
    }
  as_object().emplace_back(std::move(key), std::move(value));
}

void Json::push_back(Json value) {
  if (is_null()) value_ = Array{};
  as_array().push_back(std::move(value));
}

std::string Json::dump(int indent) const {
  std::string out;
  dump_value(*this, out, indent, 0);
  return out;
}

const Json* JsonReader::find(std::string_view key) const {
  const Json* value = object_->find(key);
  return value && !value->is_null() ? value : nullptr;
}

Status JsonReader::bad(std::string_view key, const std::string& expected) const {
  const Json* value = object_->find(key);
  std::string given = value ? value->dump() : "missing";
  if (given.size() > 80) given = given.substr(0, 77) + "...";
  return invalid_input("[" + path_ + "] " + std::string(key) + " is " + given + "; expected " + expected);
}

Result<int64_t> JsonReader::integer(std::string_view key, int64_t minimum, int64_t maximum) const {
  const Json* value = find(key);
  if (value && value->fits_int64() && value->as_int64() >= minimum && value->as_int64() <= maximum)
    return value->as_int64();
  return bad(key, "an integer in [" + std::to_string(minimum) + ", " + std::to_string(maximum) + "]");
}

Result<int64_t> JsonReader::integer_or(std::string_view key, int64_t fallback, int64_t minimum,
                                       int64_t maximum) const {
  if (!find(key)) return fallback;
  return integer(key, minimum, maximum);
}

Result<double> JsonReader::number(std::string_view key, double minimum, double maximum) const {
  const Json* value = find(key);
  if (value && value->is_number() && value->as_double() >= minimum && value->as_double() <= maximum)
    return value->as_double();
  return bad(key, "a number in [" + Json(minimum).dump() + ", " + Json(maximum).dump() + "]");
}

Result<double> JsonReader::number_or(std::string_view key, double fallback, double minimum,
                                     double maximum) const {
  if (!find(key)) return fallback;
  return number(key, minimum, maximum);
}

Result<bool> JsonReader::boolean_or(std::string_view key, bool fallback) const {
  const Json* value = find(key);
  if (!value) return fallback;
  if (!value->is_bool()) return bad(key, "true or false");
  return value->as_bool();
}

Result<std::string> JsonReader::string(std::string_view key) const {
  const Json* value = find(key);
  if (value && value->is_string()) return value->as_string();
  return bad(key, "a string");
}

Result<std::string> JsonReader::string_or(std::string_view key, std::string fallback) const {
  if (!find(key)) return fallback;
  return string(key);
}

}  // namespace tessera
