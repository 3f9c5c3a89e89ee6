package registry

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// TestCredentialRotates: a client outlives the credential that it began with,
// and takes the one that lies in the file by then, whether the registry says
// that the old one has expired with 401 or, as some do, with 403.
func TestCredentialRotates(t *testing.T) {
	const next = "hunter2:next-secret"
	for name, kind := range map[string]struct {
		bearer bool
		status int
	}{
		"basic, 401": {false, http.StatusUnauthorized},
		"basic, 403": {false, http.StatusForbidden},
		"bearer":     {true, http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tokens := &testregistry.Tokens{User: user, Password: password}
			if kind.bearer {
				w.Bearer(tokens)
			} else {
				w.Basic(user, password)
			}
			file := authFileOf(t, `{"auths":{"`+w.host+`":{"username":"`+user+`","password":"`+password+`"}}}`)
			r := w.open(t, func(o *Options) {
				o.AuthFile = file
				o.CredentialLife = time.Nanosecond
			})
			if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
				t.Fatalf("%d bytes, %v", len(b), err)
			}

			old := r.own().auth.current()
			expired := w.Inject(&testregistry.Fault{
				Match: func(req *http.Request) bool { return req.Header.Get("Authorization") == old },
				Serve: testregistry.Status(kind.status),
			})
			if kind.bearer {
				tokens.Password = next
				tokens.Revoke()
			} else {
				w.Basic(user, next)
			}
			if _, err := readBlob(r, w.layer); !errors.Is(err, fault.ErrUnauthorized) {
				t.Errorf("the file has the old one: %v", err)
			}
			if err := os.WriteFile(file, []byte(`{"auths":{"`+w.host+`":{"username":"`+user+`","password":"`+next+`"}}}`), 0o600); err != nil {
				t.Fatal(err)
			}
			if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if expired.Delivered() == 0 {
				t.Error("no refusal was delivered")
			}
			if kind.bearer && tokens.Issued() != 2 {
				t.Errorf("%d tokens", tokens.Issued())
			}
			noSecret(t, w.said())
		})
	}
}
