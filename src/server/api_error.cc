#include "server/api_error.h"

#include "server/json_text.h"

namespace tessera::server {

ApiError api_error(const Status& status, bool draining) {
  const std::string& message = status.message();
  switch (status.code()) {
    case StatusCode::kOk:
      return {};
    case StatusCode::kInvalidInput:
      return {400, message, "", "invalid_value"};
    case StatusCode::kUnprocessable:
      return {422, message, "", "invalid_image"};
    case StatusCode::kTooLong:
      return {400, message, "", "context_length_exceeded"};
    case StatusCode::kDoesNotFit:
      return {400, message, "", "does_not_fit"};
    case StatusCode::kUnavailable:
      if (draining) return {503, message, "", "unavailable", 5};
      return {429, message, "", "queue_full", 1};
    case StatusCode::kCancelled:
      if (draining)
        return {503, "[serve] the server is shutting down; send the request again", "", "unavailable", 5};
      return {499, message.empty() ? "[serve] the request was cancelled" : message, "", "cancelled"};
    case StatusCode::kDeadline:
      return {408, message, "", "deadline_exceeded"};
    case StatusCode::kInternal:
      break;
  }
  return {500, message, "", "internal_error"};
}

const char* error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 408:
      return "timeout_error";
    case 429:
      return "rate_limit_error";
    case 499:
      return "cancelled_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string error_body(const ApiError& error) {
  std::string body = "{\"error\":{\"message\":";
  append_json_string(body, error.message);
  body += ",\"type\":\"";
  body += error_type(error.status);
  body += "\",\"param\":";
  if (error.param.empty())
    body += "null";
  else
    append_json_string(body, error.param);
  body += ",\"code\":";
  if (error.code.empty())
    body += "null";
  else
    append_json_string(body, error.code);
  return body + "}}";
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response;
  response.status = error.status;
  response.body = error_body(error);
  if (error.retry_after_s > 0)
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_s));
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace tessera::server
