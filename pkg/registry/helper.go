package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"time"
)

// Bounds on a credential helper, which is any program that a file names.
const (
	helperTime      = 3 * time.Minute // how long it may take: it may ask its user to unlock a store
	helperHint      = 5 * time.Second // after this the user is told what is waited for
	maxHelperAnswer = 128 << 10       // bytes of its output
)

// errHelperAnswer is all that is said of an answer: it may hold a secret.
var errHelperAnswer = errors.New("its answer is no credential")

// askHelper runs docker-credential-NAME for a server's credential. The empty one
// is what a helper gives that has none.
func askHelper(ctx context.Context, name, server string, notify func(string, ...any)) (credential, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	program := "docker-credential-" + name
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	out := &helperAnswer{tooLong: func() { cancel(errHelperAnswer) }}
	cmd.Stdout = out // and what it says otherwise is not shown: it deals in secrets
	// What the helper has started itself may outlive it, and keep its output open.
	cmd.WaitDelay = time.Second
	hint := time.AfterFunc(helperHint, func() { notify("waiting for %s", program) })
	defer hint.Stop()
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return credential{}, context.Cause(ctx)
	case err != nil && strings.Contains(string(out.b), "credentials not found"):
		return credential{}, nil
	case err != nil:
		return credential{}, err
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.b, &answer) != nil {
		return credential{}, errHelperAnswer
	}
	if answer.Username == "<token>" {
		return credential{RefreshToken: answer.Secret}, nil
	}
	return credential{Username: answer.Username, Password: answer.Secret}, nil
}

// helperAnswer keeps as much as an answer may have. It is no bytes.Buffer,
// which would read from a pipe by itself, to the end.
type helperAnswer struct {
	b       []byte
	tooLong func()
}

func (a *helperAnswer) Write(p []byte) (int, error) {
	if len(a.b)+len(p) > maxHelperAnswer {
		a.tooLong()
		return 0, io.ErrShortBuffer
	}
	a.b = append(a.b, p...)
	return len(p), nil
}
