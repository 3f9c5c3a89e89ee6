package testregistry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// authorizer answers the requests that it does not let through.
type authorizer interface {
	serve(w http.ResponseWriter, req *http.Request) (done bool)
}

// Basic asks for a user and a password.
func (r *Registry) Basic(user, password string) {
	r.setAuth(basic{user, password})
}

func (r *Registry) setAuth(a authorizer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = a
}

type basic struct{ user, password string }

func (b basic) serve(w http.ResponseWriter, req *http.Request) bool {
	if u, p, ok := req.BasicAuth(); ok && u == b.user && p == b.password {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test registry"`)
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED")
	return true
}

// Tokens is the bearer authentication of a registry and its token server in
// one. Tokens are good until Revoke.
type Tokens struct {
	User, Password string // what /token wants; "" and "": anonymous
	Identity       string // a refresh token that POST /token takes instead
	Realm          string // URL of the token server; "": /token on this one
	NoToken        int    // how many requests for a token are refused with 500

	mu     sync.Mutex
	issued int
	valid  map[string]string // token: scope
}

// Bearer asks for tokens. Unless Realm says otherwise, ServeToken is at /token.
func (r *Registry) Bearer(t *Tokens) *Tokens {
	r.setAuth(t)
	return t
}

// Revoke makes all tokens bad.
func (t *Tokens) Revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.valid = nil
}

// Issued is how many tokens were given out.
func (t *Tokens) Issued() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.issued
}

func (t *Tokens) serve(w http.ResponseWriter, req *http.Request) bool {
	if req.URL.Path == "/token" {
		t.ServeToken(w, req)
		return true
	}
	scope := ""
	if m := manifestPath.FindStringSubmatch(req.URL.Path); m != nil {
		scope = "repository:" + m[1] + ":pull"
	} else if m := blobPath.FindStringSubmatch(req.URL.Path); m != nil {
		scope = "repository:" + m[1] + ":pull"
	}
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	t.mu.Lock()
	granted, good := t.valid[token]
	t.mu.Unlock()
	if ok && good && (scope == "" || strings.Contains(" "+granted+" ", " "+scope+" ")) {
		return false
	}
	realm := t.Realm
	if realm == "" {
		realm = "http://" + req.Host + "/token"
		if req.TLS != nil {
			realm = "https://" + req.Host + "/token"
		}
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="test registry",scope="%s"`, realm, scope))
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED")
	return true
}

// ServeToken is the token server.
func (t *Tokens) ServeToken(w http.ResponseWriter, req *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.NoToken > 0 {
		t.NoToken--
		fail(w, http.StatusInternalServerError, "UNKNOWN")
		return
	}
	ok := t.User == "" && t.Identity == ""
	scope := req.FormValue("scope")
	switch {
	case req.Method == http.MethodPost:
		ok = t.Identity != "" && req.PostFormValue("grant_type") == "refresh_token" && req.PostFormValue("refresh_token") == t.Identity
	case t.User != "":
		u, p, _ := req.BasicAuth()
		ok = u == t.User && p == t.Password
	}
	if !ok {
		fail(w, http.StatusUnauthorized, "DENIED")
		return
	}
	t.issued++
	token := fmt.Sprintf("token-%d-secret", t.issued)
	if t.valid == nil {
		t.valid = make(map[string]string)
	}
	t.valid[token] = scope
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 3600})
}
