#include "text/grammar_schema.h"

#include <algorithm>
#include <map>
#include <set>

namespace tessera {
namespace {

constexpr size_t kMaxNodes = 10000;
constexpr size_t kMaxLiterals = 10000;
// Of one place. Each may be a way to read the same text, and all ways are followed while a token is chosen, by the thread
// that makes everybody's tokens.
constexpr size_t kMaxAlternatives = 64;
constexpr int32_t kNever = 1 << 20;  // a height that no value has

const std::set<std::string>& annotations() {
  static const std::set<std::string> names = {"title",   "description", "default",     "examples", "$schema",
                                              "$id",     "$comment",    "$defs",       "definitions"};
  return names;
}

class Compiler {
 public:
  explicit Compiler(const Json& root) : root_(root) {}

  Result<CompiledSchema> run() {
    any_ = add({});
    fill_any();
    TESSERA_ASSIGN_OR_RETURN(out_.root, compile(root_, "#", 0));
    TESSERA_RETURN_IF_ERROR(flatten());
    TESSERA_RETURN_IF_ERROR(measure());
    return std::move(out_);
  }

  CompiledSchema any_object() {
    any_ = add({});
    fill_any();
    out_.root = out_.nodes[static_cast<size_t>(any_)].choices.back();
    (void)measure();
    return std::move(out_);
  }

 private:
  int32_t add(SchemaNode node) {
    out_.nodes.push_back(std::move(node));
    return static_cast<int32_t>(out_.nodes.size()) - 1;
  }
  SchemaNode& node(int32_t index) { return out_.nodes[static_cast<size_t>(index)]; }

  void fill_any() {
    SchemaNode words{.kind = SchemaNode::kLiterals, .literals = {"false", "null", "true"}};
    SchemaNode number{.kind = SchemaNode::kNumber, .number = full_number_range(false)};
    SchemaNode string{.kind = SchemaNode::kString, .maximum = kMaxGrammarString};
    SchemaNode array{.kind = SchemaNode::kArray, .maximum = kMaxGrammarItems, .rest = any_};
    SchemaNode object{.kind = SchemaNode::kObject, .rest = any_};
    const std::vector<int32_t> choices = {add(words), add(number), add(string), add(array), add(object)};
    node(any_).choices = choices;
  }

  static Status refuse(const std::string& where, const std::string& what) {
    return invalid_input("[json_schema] " + where + ": " + what);
  }

  // Refuses what this kind of schema does not have.
  static Status check_keywords(const Json& schema, const std::string& where, const std::set<std::string>& known) {
    for (const auto& [key, value] : schema.as_object())
      if (!known.count(key) && !annotations().count(key))
        return refuse(where, "the keyword \"" + key + "\" is not supported here");
    return {};
  }

  Result<int32_t> compile(const Json& schema, const std::string& where, int depth) {
    if (depth > 64 || out_.nodes.size() > kMaxNodes) return refuse(where, "the schema is too large");
    if (schema.is_bool() && schema.as_bool()) return any_;
    if (!schema.is_object()) return refuse(where, "expected a schema object");
    if (const Json* ref = schema.find("$ref")) {
      TESSERA_RETURN_IF_ERROR(check_keywords(schema, where, {"$ref"}));
      return compile_ref(*ref, where, depth);
    }
    if (const Json* any_of = schema.find("anyOf")) {
      TESSERA_RETURN_IF_ERROR(check_keywords(schema, where, {"anyOf"}));
      return compile_any_of(*any_of, where, depth);
    }
    if (schema.find("enum") || schema.find("const")) return compile_literals(schema, where);
    return compile_types(schema, where, depth);
  }

  Result<int32_t> compile_ref(const Json& ref, const std::string& where, int depth) {
    const std::string name = ref.is_string() ? ref.as_string() : "";
    if (const auto found = refs_.find(name); found != refs_.end()) return found->second;
    const Json* target = name == "#" ? &root_ : nullptr;
    for (const std::string prefix : {"$defs", "definitions"}) {
      const std::string start = "#/" + prefix + "/";
      const Json* defs = root_.find(prefix);
      if (defs && name.compare(0, start.size(), start) == 0) target = defs->find(name.substr(start.size()));
    }
    if (!target) return refuse(where, "$ref \"" + name + "\" leads nowhere; expected #/$defs/NAME");
    const int32_t index = add({});  // known before its content: schemas may refer to themselves
    refs_[name] = index;
    places_[index] = name;
    TESSERA_ASSIGN_OR_RETURN(const int32_t content, compile(*target, name, depth + 1));
    node(index).choices = {content};
    return index;
  }

  Result<int32_t> compile_any_of(const Json& list, const std::string& where, int depth) {
    if (!list.is_array() || list.as_array().empty()) return refuse(where, "anyOf is no list of schemas");
    if (list.as_array().size() > kMaxNodes) return refuse(where, "the schema is too large");
    SchemaNode choice;
    for (const Json& entry : list.as_array()) {
      TESSERA_ASSIGN_OR_RETURN(const int32_t index, compile(entry, where + "/anyOf", depth + 1));
      choice.choices.push_back(index);
    }
    const int32_t index = add(std::move(choice));
    places_[index] = where;
    return index;
  }

  Result<int32_t> compile_literals(const Json& schema, const std::string& where) {
    TESSERA_RETURN_IF_ERROR(check_keywords(schema, where, {"enum", "const", "type"}));
    const Json* list = schema.find("enum");
    const Json* constant = schema.find("const");
    if (list && constant) return refuse(where, "enum and const together are not supported");
    if (list && !list->is_array()) return refuse(where, "enum is no list");
    SchemaNode literals{.kind = SchemaNode::kLiterals};
    const auto add_value = [&](const Json& value) {
      if (has_type(schema.find("type"), value)) literals.literals.push_back(value.dump());
    };
    if (constant) add_value(*constant);
    if (list)
      for (const Json& value : list->as_array()) add_value(value);
    std::sort(literals.literals.begin(), literals.literals.end());
    literals.literals.erase(std::unique(literals.literals.begin(), literals.literals.end()), literals.literals.end());
    if (literals.literals.empty()) return refuse(where, "no value is left");
    if (literals.literals.size() > kMaxLiterals) return refuse(where, "more than 10000 values are not supported");
    return add(std::move(literals));
  }

  static bool is_type(const std::string& type, const Json& value) {
    return (type == "null" && value.is_null()) || (type == "boolean" && value.is_bool()) ||
           (type == "integer" && value.is_integer()) || (type == "number" && value.is_number()) ||
           (type == "string" && value.is_string()) || (type == "array" && value.is_array()) ||
           (type == "object" && value.is_object());
  }

  static bool has_type(const Json* types, const Json& value) {
    if (!types) return true;
    if (types->is_string()) return is_type(types->as_string(), value);
    if (!types->is_array()) return false;
    return std::any_of(types->as_array().begin(), types->as_array().end(),
                       [&](const Json& type) { return type.is_string() && is_type(type.as_string(), value); });
  }

  Result<int32_t> compile_types(const Json& schema, const std::string& where, int depth) {
    static const std::set<std::string> kKeywords = {
        "type",      "properties", "required", "additionalProperties", "items",   "prefixItems",      "minLength",
        "maxLength", "minItems",   "maxItems", "minimum",              "maximum", "exclusiveMinimum", "exclusiveMaximum"};
    TESSERA_RETURN_IF_ERROR(check_keywords(schema, where, kKeywords));
    std::vector<std::string> types;
    const Json* type = schema.find("type");
    if (!type) {
      for (const auto& [key, value] : schema.as_object())
        if (!annotations().count(key)) return refuse(where, "\"" + key + "\" needs a type beside it");
      return any_;
    }
    if (type->is_string()) types = {type->as_string()};
    if (type->is_array())
      for (const Json& entry : type->as_array()) types.push_back(entry.is_string() ? entry.as_string() : "");
    SchemaNode choice;
    for (const std::string& name : types) {
      TESSERA_ASSIGN_OR_RETURN(const int32_t index, compile_type(name, schema, where, depth));
      choice.choices.push_back(index);
    }
    if (choice.choices.empty()) return refuse(where, "type names nothing");
    if (choice.choices.size() == 1) return choice.choices[0];
    const int32_t index = add(std::move(choice));
    places_[index] = where;
    return index;
  }

  Result<int32_t> compile_type(const std::string& type, const Json& schema, const std::string& where, int depth) {
    if (type == "null") return add({.kind = SchemaNode::kLiterals, .literals = {"null"}});
    if (type == "boolean") return add({.kind = SchemaNode::kLiterals, .literals = {"false", "true"}});
    if (type == "integer" || type == "number") return compile_number(type == "integer", schema, where);
    if (type == "string") {
      SchemaNode string{.kind = SchemaNode::kString};
      TESSERA_RETURN_IF_ERROR(read_bounds(schema, where, "minLength", "maxLength", kMaxGrammarString, &string));
      return add(std::move(string));
    }
    if (type == "array") return compile_array(schema, where, depth);
    if (type == "object") return compile_object(schema, where, depth);
    return refuse(where, "type \"" + type + "\" is unknown");
  }

  Result<int32_t> compile_number(bool integer, const Json& schema, const std::string& where) {
    SchemaNode number{.kind = SchemaNode::kNumber, .number = full_number_range(integer)};
    for (const auto& [key, minimum, exclusive] :
         {std::tuple("minimum", true, false), std::tuple("maximum", false, false),
          std::tuple("exclusiveMinimum", true, true), std::tuple("exclusiveMaximum", false, true)}) {
      const Json* bound = schema.find(key);
      if (!bound) continue;
      if (!bound->is_number()) return refuse(where, std::string(key) + " is no number");
      bound_number(&number.number, bound->as_double(), minimum, exclusive);
    }
    if (is_empty(number.number))
      return refuse(where, "no number of at most " + std::to_string(number.number.digits) + " digits is within the bounds");
    return add(std::move(number));
  }

  static Status read_bounds(const Json& schema, const std::string& where, const char* least, const char* most,
                            int32_t limit, SchemaNode* out) {
    const JsonReader reader(schema, "json_schema " + where);
    TESSERA_ASSIGN_OR_RETURN(const int64_t minimum, reader.integer_or(least, 0, 0, limit));
    TESSERA_ASSIGN_OR_RETURN(const int64_t maximum, reader.integer_or(most, limit, 0, int64_t{1} << 53));
    out->minimum = static_cast<int32_t>(minimum);
    out->maximum = static_cast<int32_t>(std::min<int64_t>(maximum, limit));
    if (out->minimum > out->maximum) return refuse(where, std::string(least) + " is above " + most);
    return {};
  }

  // A subschema that may be `false`: -1.
  Result<int32_t> compile_optional(const Json* schema, const std::string& where, int depth) {
    if (!schema) return any_;
    if (schema->is_bool() && !schema->as_bool()) return -1;
    return compile(*schema, where, depth + 1);
  }

  Result<int32_t> compile_array(const Json& schema, const std::string& where, int depth) {
    SchemaNode array{.kind = SchemaNode::kArray};
    TESSERA_RETURN_IF_ERROR(read_bounds(schema, where, "minItems", "maxItems", kMaxGrammarItems, &array));
    if (const Json* prefix = schema.find("prefixItems")) {
      if (!prefix->is_array()) return refuse(where, "prefixItems is no list");
      for (const Json& item : prefix->as_array()) {
        TESSERA_ASSIGN_OR_RETURN(const int32_t index, compile(item, where + "/prefixItems", depth + 1));
        array.prefix.push_back(index);
      }
    }
    TESSERA_ASSIGN_OR_RETURN(array.rest, compile_optional(schema.find("items"), where + "/items", depth));
    if (array.rest < 0) array.maximum = std::min(array.maximum, static_cast<int32_t>(array.prefix.size()));
    if (array.minimum > array.maximum) return refuse(where, "minItems is above the number of items allowed");
    return add(std::move(array));
  }

  Result<int32_t> compile_object(const Json& schema, const std::string& where, int depth) {
    SchemaNode object{.kind = SchemaNode::kObject};
    TESSERA_ASSIGN_OR_RETURN(object.rest,
                             compile_optional(schema.find("additionalProperties"), where + "/additionalProperties", depth));
    std::set<std::string> required;
    if (const Json* list = schema.find("required")) {
      if (!list->is_array()) return refuse(where, "required is no list");
      for (const Json& name : list->as_array()) {
        if (!name.is_string()) return refuse(where, "required holds something that is no name");
        required.insert(name.as_string());
      }
    }
    if (const Json* properties = schema.find("properties")) {
      if (!properties->is_object()) return refuse(where, "properties is no object");
      for (const auto& [name, entry] : properties->as_object()) {
        TESSERA_ASSIGN_OR_RETURN(const int32_t index, compile(entry, where + "/" + name, depth + 1));
        object.properties.push_back({name, Json(name).dump(), index, required.erase(name) > 0});
      }
    }
    for (const std::string& name : required) {
      if (object.rest < 0) return refuse(where, "\"" + name + "\" is required and not allowed");
      object.properties.push_back({name, Json(name).dump(), object.rest, true});
    }
    if (object.properties.size() > kMaxGrammarProperties)
      return refuse(where, "more than " + std::to_string(kMaxGrammarProperties) + " properties are not supported");
    for (const auto& property : object.properties)
      if (property.name.size() >= static_cast<size_t>(kMaxGrammarKey))
        return refuse(where, "a property's name is " + std::to_string(property.name.size()) + " bytes long; at most " +
                                 std::to_string(kMaxGrammarKey - 1) + " are supported");
    std::sort(object.properties.begin(), object.properties.end(),
              [](const auto& a, const auto& b) { return a.literal < b.literal; });
    return add(std::move(object));
  }

  // Choices of choices become one list each, in which no alternative is there twice and all literals are one.
  Status flatten() {
    std::vector<std::pair<int32_t, std::vector<int32_t>>> lists;
    for (const auto& [index, where] : places_) {
      std::vector<int32_t> leaves;
      TESSERA_RETURN_IF_ERROR(gather(index, where, &leaves));
      lists.emplace_back(index, std::move(leaves));
    }
    for (auto& [index, leaves] : lists) node(index).choices = std::move(leaves);
    return {};
  }

  // What a choice comes to when the choices in it are followed, too.
  Status gather(int32_t index, const std::string& where, std::vector<int32_t>* leaves) {
    std::set<int32_t> visited;
    std::vector<int32_t> open{index};
    std::set<std::string> literals;
    while (!open.empty()) {
      const int32_t at = open.back();
      open.pop_back();
      if (!visited.insert(at).second) continue;
      const SchemaNode& n = node(at);
      if (n.kind == SchemaNode::kChoice)
        open.insert(open.end(), n.choices.rbegin(), n.choices.rend());
      else if (n.kind == SchemaNode::kLiterals)
        literals.insert(n.literals.begin(), n.literals.end());
      else if (!has_equal(*leaves, n))
        leaves->push_back(at);
      if (leaves->size() > kMaxAlternatives)
        return refuse(where, "more than " + std::to_string(kMaxAlternatives) +
                                 " alternatives beside constants are not supported");
      if (literals.size() > kMaxLiterals) return refuse(where, "more than 10000 values are not supported");
    }
    if (!literals.empty())
      leaves->push_back(add({.kind = SchemaNode::kLiterals, .literals = {literals.begin(), literals.end()}}));
    return {};
  }

  bool has_equal(const std::vector<int32_t>& leaves, const SchemaNode& n) {
    return std::any_of(leaves.begin(), leaves.end(), [&](int32_t leaf) { return node(leaf) == n; });
  }

  // Heights of the smallest values, by iterating from "none" until nothing changes.
  Status measure() {
    for (SchemaNode& n : out_.nodes) n.height = kNever;
    for (bool changed = true; changed;) {
      changed = false;
      for (SchemaNode& n : out_.nodes) {
        const int32_t height = height_of(n);
        changed = changed || height < n.height;
        n.height = std::min(n.height, height);
      }
    }
    for (const SchemaNode& n : out_.nodes)
      if (n.height > kMaxGrammarDepth)
        return refuse("#", "a part of the schema has no value that nests at most " + std::to_string(kMaxGrammarDepth) + " deep");
    return {};
  }

  int32_t height_of(const SchemaNode& n) {
    int32_t height = 0;
    if (n.kind == SchemaNode::kChoice) {
      height = kNever;
      for (const int32_t choice : n.choices) height = std::min(height, node(choice).height);
    } else if (n.kind == SchemaNode::kArray) {
      for (int32_t i = 0; i < std::min<int32_t>(n.minimum, static_cast<int32_t>(n.prefix.size()) + 1); ++i)
        height = std::max(
            height, node(i < static_cast<int32_t>(n.prefix.size()) ? n.prefix[static_cast<size_t>(i)] : n.rest).height);
      ++height;
    } else if (n.kind == SchemaNode::kObject) {
      for (const auto& property : n.properties)
        if (property.required) height = std::max(height, node(property.node).height);
      ++height;
    }
    return std::min(height, kNever);
  }

  const Json& root_;
  CompiledSchema out_;
  int32_t any_ = 0;
  std::map<std::string, int32_t> refs_;
  std::map<int32_t, std::string> places_;  ///< choices, by where they stand in the schema
};

}  // namespace

CompiledSchema any_object_schema() {
  const Json nothing = Json::object();
  return Compiler(nothing).any_object();
}

Result<CompiledSchema> compile_schema(const Json& schema) { return Compiler(schema).run(); }

}  // namespace tessera
