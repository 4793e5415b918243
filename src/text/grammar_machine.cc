#include "text/grammar_machine.h"

#include <algorithm>

namespace tessera {
namespace {

using Thread = GrammarThread;
using Threads = std::vector<GrammarThread>;

enum class TextEvent { kInvalid, kMore, kCharacter, kEnd };

TextEvent begin_character(unsigned char byte, StringText* text) {
  if (byte == '"') return TextEvent::kEnd;
  if (byte == '\\') {
    text->mode = StringText::kEscape;
    return TextEvent::kMore;
  }
  if (byte < 0x20) return TextEvent::kInvalid;
  if (byte < 0x80) return TextEvent::kCharacter;
  text->low = 0x80;
  text->high = 0xBF;
  if (byte >= 0xC2 && byte <= 0xDF) {
    text->left = 1;
  } else if (byte >= 0xE0 && byte <= 0xEF) {
    text->left = 2;
    if (byte == 0xE0) text->low = 0xA0;
    if (byte == 0xED) text->high = 0x9F;
  } else if (byte >= 0xF0 && byte <= 0xF4) {
    text->left = 3;
    if (byte == 0xF0) text->low = 0x90;
    if (byte == 0xF4) text->high = 0x8F;
  } else {
    return TextEvent::kInvalid;
  }
  text->mode = StringText::kContinuation;
  return TextEvent::kMore;
}

int hex_value(unsigned char byte) {
  if (byte >= '0' && byte <= '9') return byte - '0';
  if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
  return byte >= 'A' && byte <= 'F' ? byte - 'A' + 10 : -1;
}

TextEvent step_hex(unsigned char byte, StringText* text) {
  const int value = hex_value(byte);
  if (value < 0) return TextEvent::kInvalid;
  // The halves of a pair are told by their first two digits: D8..DB, then DC..DF.
  if (text->left == 4 && text->second && value != 0xD) return TextEvent::kInvalid;
  if (text->left == 3 && (text->unit == 0xD) && (text->second ? value < 0xC : value >= 0xC)) return TextEvent::kInvalid;
  text->unit = static_cast<uint16_t>(text->unit << 4 | value);
  if (--text->left > 0) return TextEvent::kMore;
  if (!text->second && text->unit >= 0xD800 && text->unit <= 0xDBFF) {
    text->mode = StringText::kPairBackslash;
    return TextEvent::kMore;
  }
  *text = StringText{};
  return TextEvent::kCharacter;
}

TextEvent step_text(unsigned char byte, StringText* text) {
  switch (text->mode) {
    case StringText::kClean:
      return begin_character(byte, text);
    case StringText::kContinuation:
      if (byte < text->low || byte > text->high) return TextEvent::kInvalid;
      text->low = 0x80;
      text->high = 0xBF;
      if (--text->left > 0) return TextEvent::kMore;
      *text = StringText{};
      return TextEvent::kCharacter;
    case StringText::kEscape:
      if (byte == 'u') {
        *text = StringText{.mode = StringText::kHex, .left = 4};
        return TextEvent::kMore;
      }
      if (std::string_view("\"\\/bfnrt").find(static_cast<char>(byte)) == std::string_view::npos)
        return TextEvent::kInvalid;
      *text = StringText{};
      return TextEvent::kCharacter;
    case StringText::kHex:
      return step_hex(byte, text);
    case StringText::kPairBackslash:
      text->mode = StringText::kPairU;
      return byte == '\\' ? TextEvent::kMore : TextEvent::kInvalid;
    case StringText::kPairU:
      *text = StringText{.mode = StringText::kHex, .left = 4, .second = true};
      return byte == 'u' ? TextEvent::kMore : TextEvent::kInvalid;
  }
  return TextEvent::kInvalid;
}

// Reads one byte for one thread; a class so that schema and result need not be handed around.
class Stepper {
 public:
  Stepper(const CompiledSchema& schema, unsigned char byte, Threads* out) : schema_(schema), byte_(byte), out_(out) {}

  void step(const Thread& thread) {
    switch (thread.kind) {
      case Thread::kRoot:
        if (thread.phase == Thread::kOpened) start_value(thread.node, thread);
        return;
      case Thread::kLiteral:
        return step_literal(thread);
      case Thread::kNumber:
        return step_number(thread);
      case Thread::kString:
        return step_string(thread);
      case Thread::kArray:
        return step_array(thread);
      case Thread::kObject:
        return step_object(thread);
    }
  }

 private:
  const SchemaNode& node(int32_t index) const { return schema_.nodes[static_cast<size_t>(index)]; }
  bool fits(int32_t depth, int32_t index) const { return index >= 0 && depth + node(index).height <= kMaxGrammarDepth; }

  void pop(const Thread& thread) { out_->push_back(*thread.parent); }

  bool take_space(const Thread& thread) {
    if (byte_ != ' ') return false;
    if (!thread.spaced) {
      out_->push_back(thread);
      out_->back().spaced = true;
    }
    return true;
  }

  // Begins a value below `holder`, which is as it will be when the value has ended but for its phase.
  void start_value(int32_t index, Thread holder) {
    holder.phase = Thread::kAfterValue;
    holder.spaced = false;
    const auto shared = std::make_shared<const Thread>(std::move(holder));
    if (node(index).kind != SchemaNode::kChoice) return start_alternative(index, shared);
    for (const int32_t choice : node(index).choices) start_alternative(choice, shared);
  }

  void start_alternative(int32_t index, const std::shared_ptr<const Thread>& holder) {
    const SchemaNode& n = node(index);
    if (holder->depth + n.height > kMaxGrammarDepth) return;
    Thread value;
    value.node = index;
    value.depth = holder->depth;
    value.parent = holder;
    switch (n.kind) {
      case SchemaNode::kLiterals:
        value.kind = Thread::kLiteral;
        value.high = static_cast<int32_t>(n.literals.size());
        return step_literal(value);
      case SchemaNode::kNumber:
        value.kind = Thread::kNumber;
        if (push_number_byte(n.number, byte_, &value.number)) out_->push_back(std::move(value));
        return;
      case SchemaNode::kString:
        value.kind = Thread::kString;
        if (byte_ == '"') out_->push_back(std::move(value));
        return;
      case SchemaNode::kArray:
      case SchemaNode::kObject:
        value.kind = n.kind == SchemaNode::kArray ? Thread::kArray : Thread::kObject;
        ++value.depth;
        if (byte_ == (n.kind == SchemaNode::kArray ? '[' : '{')) out_->push_back(std::move(value));
        return;
      case SchemaNode::kChoice:
        return;
    }
  }

  void step_literal(Thread thread) {
    const auto& literals = node(thread.node).literals;
    const auto at = static_cast<size_t>(thread.count);
    const auto keep = [&](int32_t i) {
      const std::string& literal = literals[static_cast<size_t>(i)];
      return literal.size() > at && static_cast<unsigned char>(literal[at]) == byte_;
    };
    while (thread.low < thread.high && !keep(thread.low)) ++thread.low;
    while (thread.low < thread.high && !keep(thread.high - 1)) --thread.high;
    if (thread.low >= thread.high) return;
    ++thread.count;
    // Sorted: of those that begin so, the one that ends here comes first. Numbers may go on (5, 55).
    if (literals[static_cast<size_t>(thread.low)].size() == at + 1) {
      pop(thread);
      ++thread.low;
    }
    if (thread.low < thread.high) out_->push_back(std::move(thread));
  }

  void step_number(const Thread& thread) {
    const NumberRange& range = node(thread.node).number;
    Thread next = thread;
    if (push_number_byte(range, byte_, &next.number)) {
      out_->push_back(std::move(next));
    } else if (is_whole_number(range, thread.number)) {
      step(*thread.parent);
    }
  }

  void step_string(const Thread& thread) {
    const SchemaNode& n = node(thread.node);
    if (thread.text.mode == StringText::kClean && byte_ != '"' && thread.count >= n.maximum) return;
    Thread next = thread;
    switch (step_text(byte_, &next.text)) {
      case TextEvent::kInvalid:
        return;
      case TextEvent::kEnd:
        if (thread.count >= n.minimum) pop(thread);
        return;
      case TextEvent::kCharacter:
        ++next.count;
        break;
      case TextEvent::kMore:
        break;
    }
    out_->push_back(std::move(next));
  }

  // The schema of an array's item, -1 where there may be none.
  int32_t item_node(const Thread& thread) const {
    const SchemaNode& n = node(thread.node);
    if (thread.count >= n.maximum) return -1;
    const auto index = static_cast<size_t>(thread.count);
    const int32_t item = index < n.prefix.size() ? n.prefix[index] : n.rest;
    return fits(thread.depth, item) ? item : -1;
  }

  void step_array(const Thread& thread) {
    if (take_space(thread)) return;
    if (byte_ == ']') {
      if (thread.phase != Thread::kAfterComma && thread.count >= node(thread.node).minimum) pop(thread);
      return;
    }
    const int32_t item = item_node(thread);
    if (item < 0) return;
    Thread next = thread;
    if (thread.phase == Thread::kAfterValue) {
      if (byte_ != ',') return;
      next.phase = Thread::kAfterComma;
      next.spaced = false;
      out_->push_back(std::move(next));
      return;
    }
    ++next.count;
    start_value(item, std::move(next));
  }

  bool has_required(const Thread& thread) const {
    const auto& properties = node(thread.node).properties;
    for (size_t i = 0; i < properties.size(); ++i)
      if (properties[i].required && !thread.seen[i]) return false;
    return true;
  }

  bool is_open(const Thread& thread, int32_t property) const {
    const auto index = static_cast<size_t>(property);
    return !thread.seen[index] && fits(thread.depth, node(thread.node).properties[index].node);
  }

  bool any_open(const Thread& thread, int32_t low, int32_t high) const {
    for (int32_t i = low; i < high; ++i)
      if (is_open(thread, i)) return true;
    return false;
  }

  bool can_have_key(const Thread& thread) const {
    const SchemaNode& n = node(thread.node);
    return fits(thread.depth, n.rest) || any_open(thread, 0, static_cast<int32_t>(n.properties.size()));
  }

  void begin_key(const Thread& thread) {
    const SchemaNode& n = node(thread.node);
    const auto count = static_cast<int32_t>(n.properties.size());
    Thread next = thread;
    next.spaced = false;
    if (any_open(thread, 0, count)) {
      next.phase = Thread::kKnownKey;
      next.count = 1;
      next.low = 0;
      next.high = count;
      out_->push_back(next);
    }
    if (!fits(thread.depth, n.rest)) return;
    next.phase = Thread::kFreeKey;
    next.count = next.low = next.high = 0;
    next.key.clear();
    next.text = StringText{};
    out_->push_back(std::move(next));
  }

  void step_known_key(const Thread& thread) {
    const auto& properties = node(thread.node).properties;
    const auto at = static_cast<size_t>(thread.count);
    Thread next = thread;
    const auto keep = [&](int32_t i) {
      const std::string& literal = properties[static_cast<size_t>(i)].literal;
      return literal.size() > at && static_cast<unsigned char>(literal[at]) == byte_;
    };
    while (next.low < next.high && !keep(next.low)) ++next.low;
    while (next.low < next.high && !keep(next.high - 1)) --next.high;
    if (!any_open(thread, next.low, next.high)) return;
    ++next.count;
    // A literal ends with its only unescaped quote, so that none is the beginning of another.
    if (properties[static_cast<size_t>(next.low)].literal.size() == at + 1) next.phase = Thread::kColon;
    out_->push_back(std::move(next));
  }

  bool is_free(const Thread& thread) const {
    for (const auto& property : node(thread.node).properties)
      if (property.name == thread.key) return false;
    return thread.count >= kMaxGrammarKey || !thread.used_keys ||
           std::find(thread.used_keys->begin(), thread.used_keys->end(), thread.key) == thread.used_keys->end();
  }

  // Names that the schema does not give are written without escapes, so that equal names have equal bytes.
  void step_free_key(const Thread& thread) {
    const bool clean = thread.text.mode == StringText::kClean;
    if (byte_ == '\\' || (clean && byte_ != '"' && thread.count >= kMaxGrammarKey)) return;
    Thread next = thread;
    const TextEvent event = step_text(byte_, &next.text);
    if (event == TextEvent::kInvalid) return;
    if (event == TextEvent::kEnd) {
      if (!is_free(thread)) return;
      auto used = thread.used_keys ? *thread.used_keys : std::vector<std::string>{};
      used.push_back(thread.key);
      next.used_keys = std::make_shared<const std::vector<std::string>>(std::move(used));
      next.key.clear();
      next.phase = Thread::kColon;
      next.count = 0;
      next.low = -1;
    } else {
      next.key.push_back(static_cast<char>(byte_));
      next.count += event == TextEvent::kCharacter;
    }
    out_->push_back(std::move(next));
  }

  void step_object(const Thread& thread) {
    if (thread.phase == Thread::kKnownKey) return step_known_key(thread);
    if (thread.phase == Thread::kFreeKey) return step_free_key(thread);
    if (take_space(thread)) return;
    Thread next = thread;
    next.spaced = false;
    switch (thread.phase) {
      case Thread::kOpened:
      case Thread::kAfterValue:
        if (byte_ == '}' && has_required(thread)) return pop(thread);
        if (byte_ == '"' && thread.phase == Thread::kOpened) return begin_key(thread);
        if (byte_ == ',' && thread.phase == Thread::kAfterValue && can_have_key(thread)) {
          next.phase = Thread::kAfterComma;
          out_->push_back(std::move(next));
        }
        return;
      case Thread::kAfterComma:
        if (byte_ == '"') begin_key(thread);
        return;
      case Thread::kColon:
        if (byte_ != ':') return;
        next.phase = Thread::kValue;
        out_->push_back(std::move(next));
        return;
      case Thread::kValue: {
        const SchemaNode& n = node(thread.node);
        if (thread.low >= 0) next.seen.set(static_cast<size_t>(thread.low));
        const int32_t value = thread.low < 0 ? n.rest : n.properties[static_cast<size_t>(thread.low)].node;
        next.low = next.high = next.count = 0;
        return start_value(value, std::move(next));
      }
      default:
        return;
    }
  }

  const CompiledSchema& schema_;
  const unsigned char byte_;
  Threads* out_;
};

template <class T>
void put(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof value);
}

// A counter as it matters within the horizon: far from its bounds it does not.
int32_t visible_count(int32_t count, int32_t minimum, int32_t maximum, int32_t horizon) {
  return horizon > 0 && count >= minimum && maximum - count > horizon ? -1 : count;
}

}  // namespace

GrammarThread start_thread(const CompiledSchema& schema) {
  GrammarThread thread;
  thread.node = schema.root;
  return thread;
}

void step_thread(const CompiledSchema& schema, const GrammarThread& thread, unsigned char byte, Threads* out) {
  Stepper(schema, byte, out).step(thread);
}

bool is_complete(const CompiledSchema& schema, const GrammarThread& thread) {
  if (thread.kind == Thread::kRoot) return thread.phase == Thread::kAfterValue;
  return thread.kind == Thread::kNumber && thread.parent->kind == Thread::kRoot &&
         is_whole_number(schema.nodes[static_cast<size_t>(thread.node)].number, thread.number);
}

int32_t string_room(const CompiledSchema& schema, const GrammarThread& thread) {
  const int32_t maximum =
      thread.kind == Thread::kString ? schema.nodes[static_cast<size_t>(thread.node)].maximum : kMaxGrammarKey;
  return maximum - thread.count;
}

std::string signature(const CompiledSchema& schema, const GrammarThread& thread, int32_t horizon) {
  std::string out;
  for (const GrammarThread* t = &thread; t; t = t->parent.get()) {
    const SchemaNode& n = schema.nodes[static_cast<size_t>(t->node)];
    put(&out, t->kind);
    put(&out, t->phase);
    put(&out, t->spaced);
    put(&out, t->node);
    int32_t count = t->count;
    if (t->kind == Thread::kString) count = visible_count(count, n.minimum, n.maximum, horizon);
    if (t->kind == Thread::kArray)
      count = visible_count(count, std::max(n.minimum, static_cast<int32_t>(n.prefix.size())), n.maximum, horizon);
    put(&out, count);
    put(&out, t->low);
    put(&out, t->high);
    for (const int part : {int{t->text.mode}, int{t->text.left}, int{t->text.low}, int{t->text.high}, int{t->text.unit},
                           int{t->text.second}})
      put(&out, static_cast<uint16_t>(part));
    if (t->kind == Thread::kNumber) {
      for (const int part : {int{t->number.phase}, int{t->number.negative}, int{t->number.integer_digits},
                             int{t->number.fraction_digits}, int{t->number.exponent_digits}})
        put(&out, static_cast<uint8_t>(part));
      put(&out, t->number.magnitude);
    }
    if (t->kind == Thread::kObject) {
      put(&out, t->depth);
      out += t->seen.to_string();
      out += t->key;
      out.push_back('\0');
      if (t->used_keys)
        for (const std::string& key : *t->used_keys) out += key + '\0';
    }
    out.push_back('|');
  }
  return out;
}

}  // namespace tessera
