#pragma once

#include <string>

#include "server/http.h"
#include "tessera/status.h"

namespace tessera::server {

/// A failure as OpenAI's API shows it: `{"error": {"message", "type", "param", "code"}}` with an HTTP status.
struct ApiError {
  int status = 0;  ///< 0: no error
  std::string message;
  std::string param;  ///< the field at fault, or ""
  std::string code;   ///< a word for programs, such as "unsupported_parameter", or ""
  int retry_after_s = 0;

  bool failed() const { return status != 0; }
};

/// The error that a failure of the engine is for its client. `draining` says which kind of unavailable it is.
ApiError api_error(const Status& status, bool draining = false);

/// OpenAI's word for errors of this status: invalid_request_error, authentication_error, ...
const char* error_type(int status);

/// The object as compact JSON text.
std::string error_body(const ApiError& error);

HttpResponse error_response(const ApiError& error);

}  // namespace tessera::server
