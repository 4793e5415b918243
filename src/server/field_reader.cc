#include "server/field_reader.h"

#include <algorithm>
#include <cstdio>

namespace tessera::server {
namespace {

std::string number_text(double value) {
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, "%.15g", value);
  return buffer;
}

}  // namespace

size_t character_count(std::string_view text) {
  size_t count = 0;
  for (char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

std::string shown(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string() && value.as_string().size() > 40) return "a string";
  return value.dump();
}

std::string FieldReader::place(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

bool FieldReader::has(std::string_view name) const {
  const Json* value = object_->find(name);
  return value && !value->is_null();
}

const Json* FieldReader::find(std::string_view name) {
  known_.emplace_back(name);
  const Json* value = object_->find(name);
  return value && !value->is_null() ? value : nullptr;
}

void FieldReader::fail(std::string_view name, const std::string& message, const std::string& code) {
  if (failed()) return;
  *error_ = {400, "[request] " + place(name) + " " + message, place(name), code};
}

std::optional<double> FieldReader::number(std::string_view name, double minimum, double maximum) {
  const Json* value = find(name);
  if (!value || failed()) return std::nullopt;
  if (!value->is_number() || !(value->as_double() >= minimum && value->as_double() <= maximum)) {
    fail(name, "is " + shown(*value) + "; expected a number, " + number_text(minimum) + ".." +
                   number_text(maximum));
    return std::nullopt;
  }
  return value->as_double();
}

std::optional<int64_t> FieldReader::integer(std::string_view name, int64_t minimum, int64_t maximum) {
  const Json* value = find(name);
  if (!value || failed()) return std::nullopt;
  if (!value->fits_int64() || value->as_int64() < minimum || value->as_int64() > maximum) {
    fail(name, "is " + shown(*value) + "; expected an integer, " + std::to_string(minimum) + ".." +
                   std::to_string(maximum));
    return std::nullopt;
  }
  return value->as_int64();
}

std::optional<uint64_t> FieldReader::seed(std::string_view name) {
  const Json* value = find(name);
  if (!value || failed()) return std::nullopt;
  if (!value->is_integer()) {
    fail(name, "is " + shown(*value) + "; expected an integer of 64 bits");
    return std::nullopt;
  }
  return value->fits_int64() ? static_cast<uint64_t>(value->as_int64()) : value->as_uint64();
}

std::optional<bool> FieldReader::boolean(std::string_view name) {
  const Json* value = find(name);
  if (!value || failed()) return std::nullopt;
  if (!value->is_bool()) {
    fail(name, "is " + shown(*value) + "; expected true or false");
    return std::nullopt;
  }
  return value->as_bool();
}

std::optional<std::string> FieldReader::string(std::string_view name, size_t max_characters) {
  const Json* value = find(name);
  if (!value || failed()) return std::nullopt;
  if (!value->is_string()) {
    fail(name, "is " + shown(*value) + "; expected a string");
    return std::nullopt;
  }
  if (character_count(value->as_string()) > max_characters) {
    fail(name, "has " + std::to_string(character_count(value->as_string())) + " characters; at most " +
                   std::to_string(max_characters));
    return std::nullopt;
  }
  return value->as_string();
}

void FieldReader::refuse(std::string_view name, const std::string& reason) {
  if (find(name)) fail(name, "is not supported: " + reason, "unsupported_parameter");
}

void FieldReader::finish(const UnknownFields& unknown) {
  if (failed()) return;
  for (const auto& [name, value] : object_->as_object()) {
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    const std::string shown_name = name.size() <= 64 ? name : name.substr(0, 64) + "...";
    if (!unknown.ignored)
      return fail(shown_name, "is not a known field; " + unknown.advice, "unknown_parameter");
    unknown.ignored->push_back(place(shown_name));
  }
}

}  // namespace tessera::server
