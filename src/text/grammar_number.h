#pragma once

#include <cstdint>
#include <optional>

#include "core/json.h"

namespace tessera {

/// The numbers that a schema allows, as integers of 10^-9. Integers have at most 18 digits; other numbers at most 15
/// (a double tells those apart), at most 9 of them behind the point. Exponents only where nothing bounds the value.
struct NumberRange {
  bool integer = false;
  bool bounded = false;
  __int128 low = 0;   ///< least value
  __int128 high = 0;  ///< largest value
  int digits = 15;
  bool operator==(const NumberRange&) const = default;
};

/// The range without bounds.
NumberRange full_number_range(bool integer);
/// Narrows a range by minimum, maximum, exclusiveMinimum or exclusiveMaximum.
void bound_number(NumberRange* range, double bound, bool is_minimum, bool exclusive);
/// True when no number is left.
bool is_empty(const NumberRange& range);

/// A number's text so far.
struct NumberText {
  enum Phase : uint8_t { kStart, kMinus, kZero, kInteger, kPoint, kFraction, kExponent, kExponentSign, kExponentDigits };
  Phase phase = kStart;
  bool negative = false;
  uint8_t integer_digits = 0;
  uint8_t fraction_digits = 0;
  uint8_t exponent_digits = 0;
  __int128 magnitude = 0;  ///< in units of 10^-9
  bool operator==(const NumberText&) const = default;
};

/// Adds a byte when some number of the range begins so; false and no change otherwise.
bool push_number_byte(const NumberRange& range, unsigned char byte, NumberText* text);
/// True when the text is a number of the range.
bool is_whole_number(const NumberRange& range, const NumberText& text);

}  // namespace tessera
