#include "core/safetensors.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "core/json.h"

namespace tessera {
namespace {

// The format's own bound on its header; the largest released checkpoint (18 000 expert tensors a shard set) needs 3 MB.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 16;

struct ElementType {
  const char* name;
  uint64_t bytes;
  std::optional<DType> dtype;
};

// Every type of the format's specification; those without a DType can be listed, not loaded.
const ElementType* find_element_type(std::string_view name) {
  static const std::array<ElementType, 15> kTypes = {{
      {"F32", 4, DType::kF32},
      {"BF16", 2, DType::kBF16},
      {"F16", 2, DType::kF16},
      {"I32", 4, DType::kI32},
      {"I64", 8, DType::kI64},
      {"U8", 1, DType::kU8},
      {"I8", 1, DType::kI8},
      {"BOOL", 1, {}},
      {"F64", 8, {}},
      {"I16", 2, {}},
      {"U16", 2, {}},
      {"U32", 4, {}},
      {"U64", 8, {}},
      {"F8_E4M3", 1, {}},
      {"F8_E5M2", 1, {}},
  }};
  for (const ElementType& type : kTypes)
    if (name == type.name) return &type;
  return nullptr;
}

const char* stored_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBF16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kI32: return "I32";
    case DType::kI64: return "I64";
    case DType::kU8: return "U8";
    case DType::kI8: return "I8";
  }
  return "?";
}

// Names come from the file: bounded and without control characters, so that an error stays one line.
std::string printable(std::string_view name) {
  std::string text(name.substr(0, 120));
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text;
}

Result<std::vector<int64_t>> read_shape(const Json* value) {
  if (!value || !value->is_array()) return invalid_input("has no shape");
  if (value->as_array().size() > kMaxRank)
    return invalid_input("has " + std::to_string(value->as_array().size()) + " dimensions; the limit is " +
                         std::to_string(kMaxRank));
  std::vector<int64_t> shape;
  for (const Json& dim : value->as_array()) {
    if (!dim.fits_int64() || dim.as_int64() < 0) return invalid_input("has a dimension that is no count");
    shape.push_back(dim.as_int64());
  }
  return shape;
}

Result<uint64_t> byte_size(const std::vector<int64_t>& shape, uint64_t element_bytes) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return uint64_t{0};
  uint64_t size = element_bytes;
  for (int64_t dim : shape)
    if (__builtin_mul_overflow(size, static_cast<uint64_t>(dim), &size) || size > INT64_MAX)
      return invalid_input("has a shape whose size overflows");
  return size;
}

Result<SafetensorsEntry> read_entry(const std::string& name, const Json& value, uint64_t data_begin,
                                    uint64_t data_size) {
  SafetensorsEntry entry;
  entry.name = name;
  const Json* dtype = value.find("dtype");
  if (!dtype || !dtype->is_string()) return invalid_input("has no dtype");
  const ElementType* type = find_element_type(dtype->as_string());
  if (!type) return invalid_input("has the unknown dtype " + printable(dtype->as_string()));
  entry.stored_dtype = type->name;
  entry.dtype = type->dtype;
  TESSERA_ASSIGN_OR_RETURN(entry.shape, read_shape(value.find("shape")));
  TESSERA_ASSIGN_OR_RETURN(const uint64_t size, byte_size(entry.shape, type->bytes));

  const Json* offsets = value.find("data_offsets");
  if (!offsets || !offsets->is_array() || offsets->as_array().size() != 2)
    return invalid_input("has no data_offsets");
  for (const Json& offset : offsets->as_array())
    if (!offset.fits_int64() || offset.as_int64() < 0) return invalid_input("has data_offsets that are no counts");
  const uint64_t begin = offsets->as_array()[0].as_uint64();
  const uint64_t end = offsets->as_array()[1].as_uint64();
  if (begin > end || end > data_size)
    return invalid_input("lies at bytes " + std::to_string(begin) + ".." + std::to_string(end) + " of " +
                         std::to_string(data_size) + "; the file is truncated or its header wrong");
  if (end - begin != size)
    return invalid_input("is " + entry.describe() + ", which takes " + std::to_string(size) + " bytes, but has " +
                         std::to_string(end - begin));
  entry.begin = data_begin + begin;
  entry.end = data_begin + end;
  return entry;
}

// The data areas must follow one another from the first byte to the last: an overlap or a hole means a damaged header.
Status check_layout(std::vector<SafetensorsEntry>& tensors, uint64_t data_begin, uint64_t file_size,
                    const std::string& path) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t at = data_begin;
  for (const SafetensorsEntry& tensor : tensors) {
    if (tensor.begin != at)
      return invalid_input(path + ": tensor " + printable(tensor.name) +
                           (tensor.begin < at ? " overlaps the one before it" : " leaves a gap before it") +
                           " (it begins at byte " + std::to_string(tensor.begin) + ", expected " +
                           std::to_string(at) + "); download the file again");
    at = tensor.end;
  }
  if (at != file_size)
    return invalid_input(path + " has " + std::to_string(file_size) + " bytes; its tensors end at byte " +
                         std::to_string(at) + "; download the file again");
  return {};
}

}  // namespace

int64_t SafetensorsEntry::elements() const {
  int64_t count = 1;
  for (int64_t dim : shape) {
    if (dim == 0) return 0;
    count *= dim;
  }
  return count;
}

std::string SafetensorsEntry::describe() const {
  std::string text = stored_dtype + "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file, const std::string& path) {
  uint64_t length = 0;
  if (file.size() < sizeof length)
    return invalid_input(path + " has " + std::to_string(file.size()) +
                         " bytes; a safetensors file begins with 8 bytes of header length");
  std::memcpy(&length, file.data(), sizeof length);
  if (length > kMaxHeaderBytes)
    return invalid_input(path + " is no safetensors file: header length " + std::to_string(length) +
                         " exceeds the format's limit of " + std::to_string(kMaxHeaderBytes));
  if (length > file.size() - sizeof length)
    return invalid_input(path + " is truncated: its header takes " + std::to_string(length) + " bytes, the file has " +
                         std::to_string(file.size() - sizeof length) + " after the length");
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof length, length);
  auto json = Json::parse(text, {.max_depth = 8, .max_bytes = kMaxHeaderBytes});
  if (!json.ok()) return json.status().with_context(path + ": header");
  if (!json->is_object()) return invalid_input(path + ": header is no JSON object");

  SafetensorsHeader header;
  const uint64_t data_begin = sizeof length + length;
  for (const auto& [name, value] : json->as_object()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return invalid_input(path + ": __metadata__ is no JSON object");
      for (const auto& [key, item] : value.as_object())
        if (item.is_string()) header.metadata.emplace_back(key, item.as_string());
      continue;
    }
    auto entry = read_entry(name, value, data_begin, file.size() - data_begin);
    if (!entry.ok()) return invalid_input(path + ": tensor " + printable(name) + " " + entry.status().message());
    header.tensors.push_back(std::move(*entry));
  }
  TESSERA_RETURN_IF_ERROR(check_layout(header.tensors, data_begin, file.size(), path));
  return header;
}

Result<Safetensors> Safetensors::open(const std::string& path) {
  Safetensors file;
  file.path_ = path;
  TESSERA_ASSIGN_OR_RETURN(file.file_, MappedFile::open(path));
  TESSERA_ASSIGN_OR_RETURN(file.header_, parse_safetensors(file.file_.bytes(), path));
  for (size_t i = 0; i < file.header_.tensors.size(); ++i) file.index_.emplace(file.header_.tensors[i].name, i);
  return file;
}

const SafetensorsEntry* Safetensors::find(std::string_view name) const {
  const auto at = index_.find(std::string(name));
  return at == index_.end() ? nullptr : &header_.tensors[at->second];
}

void Safetensors::read(const SafetensorsEntry& tensor, int64_t begin, int64_t count, DType dtype, void* out) const {
  TESSERA_CHECK(tensor.dtype.has_value(), path_ + ": " + tensor.name + " is " + tensor.stored_dtype);
  TESSERA_CHECK(begin >= 0 && count >= 0 && begin + count <= tensor.elements(),
                path_ + ": elements " + std::to_string(begin) + "+" + std::to_string(count) + " of " + tensor.name);
  const size_t element = size_of(*tensor.dtype);
  const size_t offset = tensor.begin + static_cast<size_t>(begin) * element;
  const size_t length = static_cast<size_t>(count) * element;
  const std::byte* from = file_.bytes().data() + offset;
  // The header's length is arbitrary, so data may lie at odd addresses; convert() wants its elements aligned.
  if (reinterpret_cast<uintptr_t>(from) % element == 0) {
    convert(from, *tensor.dtype, out, dtype, static_cast<size_t>(count));
  } else {
    std::array<std::byte, 4096> aligned alignas(8);
    const size_t step = aligned.size() / element;
    for (size_t i = 0; i < static_cast<size_t>(count); i += step) {
      const size_t n = std::min(step, static_cast<size_t>(count) - i);
      std::memcpy(aligned.data(), from + i * element, n * element);
      convert(aligned.data(), *tensor.dtype, static_cast<char*>(out) + i * size_of(dtype), dtype, n);
    }
  }
  // From the start of the first page on: readers that go forward leave nothing behind. A page that is still wanted
  // comes back from the page cache.
  constexpr size_t kPage = 4096;
  file_.release(offset / kPage * kPage, length + offset % kPage);
}

Status write_safetensors(const std::string& path, std::span<const SafetensorsPart> parts) {
  Json header = Json::object();
  uint64_t at = 0;
  for (const SafetensorsPart& part : parts) {
    Json shape = Json::array();
    for (int64_t dim : part.shape) shape.push_back(dim);
    Json entry = Json::object();
    entry.set("dtype", stored_name(part.dtype));
    entry.set("shape", std::move(shape));
    entry.set("data_offsets", Json(Json::Array{Json(at), Json(at + part.bytes.size())}));
    header.as_object().emplace_back(part.name, std::move(entry));
    at += part.bytes.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data at a multiple of 8 bytes
  const uint64_t length = text.size();
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (const SafetensorsPart& part : parts)
    file.write(reinterpret_cast<const char*>(part.bytes.data()), static_cast<std::streamsize>(part.bytes.size()));
  file.close();
  if (!file) return invalid_input("cannot write " + path + ": " + std::strerror(errno));
  return {};
}

}  // namespace tessera
