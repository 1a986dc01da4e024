package etcdstore

import (
	"context"
	"log/slog"
	"strings"

	"go.uber.org/zap/zapcore"
)

// zapCore passes etcd's log on to ours, from warnings up. Fatal messages still end
// the process: zap does that itself after writing.
type zapCore struct {
	log    *slog.Logger
	least  zapcore.Level // warn unless set higher
	fields []zapcore.Field
}

// irrelevant reports warnings that say nothing here: about listeners and logins,
// which the embedded member has none of, and about the version of a database that
// is just being made (etcd finds it out a moment later and tries again).
func irrelevant(message string) bool {
	switch message {
	case "Running http and grpc server on single port. This is not recommended for production.",
		"simple token is not cryptographically signed",
		"Failed to detect schema version", "failed to update storage version",
		"server has stopped; skipping GoAttach":
		return true
	}
	return strings.Contains(message, "cannot campaign at term") // see lead: asked too early, asked again
}

func (z zapCore) Enabled(l zapcore.Level) bool { return l >= max(zapcore.WarnLevel, z.least) }

func (z zapCore) With(f []zapcore.Field) zapcore.Core {
	return zapCore{log: z.log, least: z.least, fields: append(append([]zapcore.Field(nil), z.fields...), f...)}
}

func (z zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !z.Enabled(e.Level) || irrelevant(e.Message) {
		return ce
	}
	return ce.AddCore(e, z)
}

func (z zapCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, list := range [][]zapcore.Field{z.fields, f} {
		for _, x := range list {
			x.AddTo(enc)
		}
	}
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	for k, v := range enc.Fields {
		enc.Fields[k] = clip(v)
	}
	z.log.LogAttrs(context.Background(), level, "etcd", slog.String("message", e.Message), slog.Any("fields", enc.Fields))
	return nil
}

// fieldMost bounds one field: of a slow transaction etcd writes every key.
const fieldMost = 300

func clip(v any) any {
	if s, ok := v.(string); ok && len(s) > fieldMost {
		return strings.ToValidUTF8(s[:fieldMost], "") + "..."
	}
	return v
}

func (z zapCore) Sync() error { return nil }
