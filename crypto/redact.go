package crypto

import (
	"fmt"
	"io"
	"log/slog"
)

const redactedText = "redacted"

// redacted is embedded in every struct that holds a secret. Such a struct keeps
// the secret two pointers away: fmt does not call the methods of a value in
// somebody's unexported field but prints it, and follows a pointer there if the
// verb does not fit.
type redacted struct{}

// Format writes "redacted", whatever the verb.
func (redacted) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redactedText) }

// String returns "redacted".
func (redacted) String() string { return redactedText }

// GoString returns "redacted".
func (redacted) GoString() string { return redactedText }

// LogValue returns "redacted".
func (redacted) LogValue() slog.Value { return slog.StringValue(redactedText) }

// MarshalText returns "redacted", also for JSON.
func (redacted) MarshalText() ([]byte, error) { return []byte(redactedText), nil }
