#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/grammar_schema.h"

namespace tessera {

/// Where the reading of a JSON string's inside stands.
struct StringText {
  enum Mode : uint8_t { kClean, kContinuation, kEscape, kHex, kPairBackslash, kPairU };
  Mode mode = kClean;
  uint8_t left = 0;              ///< continuation bytes or hex digits still to come
  uint8_t low = 0x80, high = 0xBF;  ///< bounds of the next continuation byte
  uint16_t unit = 0;             ///< of \uXXXX
  bool second = false;           ///< the second half of a surrogate pair
};

/// A JSON text being written, seen as one of the ways in which a schema can read it: a stack of open values. Bytes go
/// in one by one; where the schema leaves a choice, one thread becomes several. A value: copies are independent.
struct GrammarThread {
  enum Kind : uint8_t { kRoot, kLiteral, kNumber, kString, kArray, kObject };
  /// kObject: what is expected next. Arrays use kOpened, kAfterValue and kAfterComma.
  enum Phase : uint8_t { kOpened, kKnownKey, kFreeKey, kColon, kValue, kAfterValue, kAfterComma };

  Kind kind = kRoot;
  Phase phase = kOpened;   ///< kRoot: kOpened before the value, kAfterValue when it is there
  bool spaced = false;     ///< the one space between two tokens is used up
  int32_t node = 0;
  int32_t depth = 0;       ///< open containers, this one included
  int32_t count = 0;       ///< code points, items, bytes of a literal or key
  int32_t low = 0, high = 0;  ///< candidates among literals or properties; after a key, `low` is its property or -1
  StringText text;
  NumberText number;
  std::bitset<kMaxGrammarProperties> seen;  ///< kObject: properties that are there
  std::string key;                          ///< kFreeKey
  std::shared_ptr<const std::vector<std::string>> used_keys;  ///< free keys that are there
  std::shared_ptr<const GrammarThread> parent;

  bool in_plain_string() const {
    return text.mode == StringText::kClean && (kind == kString || (kind == kObject && phase == kFreeKey));
  }
};

/// A thread before the first byte.
GrammarThread start_thread(const CompiledSchema& schema);

/// Appends what a thread becomes with one more byte: nothing when the byte can't come here.
void step_thread(const CompiledSchema& schema, const GrammarThread& thread, unsigned char byte,
                 std::vector<GrammarThread>* out);

/// True when the text so far is a whole value.
bool is_complete(const CompiledSchema& schema, const GrammarThread& thread);

/// Code points that may still be added to the string (or free key) that is open. Requires: in_plain_string().
int32_t string_room(const CompiledSchema& schema, const GrammarThread& thread);

/// Equal signatures have equal futures. With `horizon` > 0 only the next `horizon` bytes count: counters that are
/// farther from every bound than that are left out.
std::string signature(const CompiledSchema& schema, const GrammarThread& thread, int32_t horizon);

}  // namespace tessera
