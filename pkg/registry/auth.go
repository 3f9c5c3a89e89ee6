package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// maxTokenAnswer bounds a token server's answer: a header line holds 16 KiB at
// most servers, and the answer may give the token twice.
const maxTokenAnswer = 128 << 10

// An authorizer keeps the Authorization header for one repository, and gets a
// new one when the registry refuses it.
type authorizer struct {
	c          *client
	repository string
	sem        chan struct{} // held while a token is fetched: one at a time
	anonymous  atomic.Bool   // the header is from a token server that knows nothing of us

	mu        sync.Mutex
	header    string
	got       time.Time // when header was
	tentative bool      // header is from the token server that was named first, and has not been accepted yet

	// Guarded by sem.
	asked   []challenge // what the registry wanted last
	first   []challenge // what it wanted of a request without authorization
	looked  time.Time   // when cred and credErr were looked up; zero: never
	cred    credential
	credErr error
}

func newAuthorizer(c *client, repository string) *authorizer {
	return &authorizer{c: c, repository: repository, sem: make(chan struct{}, 1)}
}

// current is the header to send, "" if none has been needed so far.
func (a *authorizer) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.header
}

// stale says that the header used may have expired, though the registry does
// not ask for another: some answer 403 then.
func (a *authorizer) stale(used string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return used != "" && (used != a.header || time.Since(a.got) > a.c.o.CredentialLife)
}

// renew answers a 401 to a request that was sent with the header used. Whoever
// gets a fresh one and is refused all the same need not ask again. When another
// request has renewed it meanwhile, that one will do; it may be refused in its
// turn.
func (a *authorizer) renew(ctx context.Context, used string, resp *http.Response) (header string, fresh bool, err error) {
	select {
	case a.sem <- struct{}{}:
		defer func() { <-a.sem }()
	case <-ctx.Done():
		return "", false, context.Cause(ctx)
	}
	if now := a.current(); now != used {
		return now, false, nil
	}
	if header, fresh, err = a.fetch(ctx, used, resp); err != nil {
		return "", false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.header, a.got, a.tentative = header, time.Now(), !fresh
	return header, fresh, nil
}

// accepted tells that the registry has taken the header used.
func (a *authorizer) accepted(used string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if used == a.header {
		a.tentative = false
	}
}

// fetch makes a header from what the registry asks for in answer to a request
// that was sent with the header used. Bearer is preferred where there is a choice:
// it keeps the password from the registry itself.
func (a *authorizer) fetch(ctx context.Context, used string, resp *http.Response) (header string, fresh bool, err error) {
	if list := parseChallenges(resp.Header.Values("Www-Authenticate")); len(list) > 0 {
		a.asked = list
		if used == "" {
			a.first = list
		}
	}
	// Some registries send who comes with an expired token to another token
	// server than who comes with none, and that one may know only its own users.
	// Others have moved theirs, and the old one may still give tokens, which are
	// refused: so what it gives is tried once.
	a.mu.Lock()
	tried := a.tentative
	a.mu.Unlock()
	if first := bearerOf(a.first); first != nil && used != "" && !tried && first["realm"] != bearerOf(a.asked)["realm"] {
		if header, err := a.bearer(ctx, first); err == nil {
			return header, false, nil
		}
	}
	header, err = a.answer(ctx)
	return header, true, err
}

// answer makes a header from what the registry wanted last.
func (a *authorizer) answer(ctx context.Context) (string, error) {
	if params := bearerOf(a.asked); params != nil {
		return a.bearer(ctx, params)
	}
	if !slices.ContainsFunc(a.asked, func(ch challenge) bool { return ch.scheme == "basic" }) {
		return "", fmt.Errorf("%s wants an authentication that is neither basic nor bearer: %w", a.c.host, fault.ErrUnauthorized)
	}
	cred, err := a.credential(ctx)
	if err != nil {
		return "", err
	}
	if cred.Username == "" {
		return "", fmt.Errorf("%s wants a user and a password, and none are known: %w", a.c.host, fault.ErrUnauthorized)
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(cred.Username+":"+cred.Password)), nil
}

// bearerOf is the parameters of the bearer challenge among others, nil if there
// is none.
func bearerOf(list []challenge) map[string]string {
	for _, ch := range list {
		if ch.scheme == "bearer" {
			return ch.params
		}
	}
	return nil
}

// credential looks the credential up when it is first needed, and again when
// what it gave may have changed. A look-up that was given up, because the
// request that needed it was, counts for nothing: a helper may be slow, and
// other requests live longer.
func (a *authorizer) credential(ctx context.Context) (credential, error) {
	if a.looked.IsZero() || time.Since(a.looked) > a.c.o.CredentialLife {
		cred, err := a.c.o.credential(ctx, a.c.ref, a.c.notify)
		if ctx.Err() != nil {
			return credential{}, context.Cause(ctx)
		}
		a.looked, a.cred, a.credErr = time.Now(), cred, err
		a.c.secrets.add(cred.Password, cred.RefreshToken, cred.AccessToken,
			url.QueryEscape(cred.Password), url.QueryEscape(cred.RefreshToken))
		if cred.Password != "" {
			a.c.secrets.add(base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password)))
		}
	}
	return a.cred, a.credErr
}

// bearer gets a token from the server that the registry names.
func (a *authorizer) bearer(ctx context.Context, params map[string]string) (string, error) {
	cred, err := a.credential(ctx)
	if err != nil {
		return "", err
	}
	a.anonymous.Store(cred == credential{})
	if cred.AccessToken != "" {
		return "Bearer " + cred.AccessToken, nil
	}
	realm, err := a.realm(ctx, params["realm"])
	if err != nil {
		return "", err
	}
	a.c.realm.Store(realm.Hostname())
	scopes := a.scopes(params["scope"])
	req, err := tokenRequest(ctx, realm, params["service"], scopes, cred)
	if err != nil {
		return "", err
	}
	// What the token server gets is meant for it alone, so its redirects are
	// not followed with it, and its errors are retried like any other's.
	retry := retrier{c: a.c}
	for {
		token, err := a.token(req)
		if err == nil {
			a.c.secrets.addToken(token)
			return "Bearer " + token, nil
		}
		if err := retry.again(ctx, err); err != nil {
			return "", err
		}
		if req, err = tokenRequest(ctx, realm, params["service"], scopes, cred); err != nil {
			return "", err
		}
	}
}

// scopes are what a token must be good for: what the registry asks for, and
// reading the repository if that is not among it.
func (a *authorizer) scopes(asked string) string {
	list := strings.Fields(asked)
	for _, s := range list {
		actions, ours := strings.CutPrefix(s, "repository:"+a.repository+":")
		if ours && slices.ContainsFunc(strings.Split(actions, ","), func(s string) bool { return s == "pull" || s == "*" }) {
			return strings.Join(list, " ")
		}
	}
	return strings.Join(append(list, "repository:"+a.repository+":pull"), " ")
}

// tokenRequest asks for a token as the distribution spec has it, with a GET; an
// identity token is exchanged by the OAuth2 way, with a POST.
func tokenRequest(ctx context.Context, realm *url.URL, service, scopes string, cred credential) (*http.Request, error) {
	if cred.RefreshToken != "" {
		form := url.Values{
			"grant_type": {"refresh_token"}, "refresh_token": {cred.RefreshToken},
			"service": {service}, "scope": {scopes}, "client_id": {"layerpipe"},
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return nil, errors.New("token server: bad address")
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req, nil
	}
	u := *realm
	q := u.Query()
	if service != "" {
		q.Set("service", service)
	}
	for _, s := range strings.Fields(scopes) {
		q.Add("scope", s)
	}
	if cred.Username != "" {
		q.Set("account", cred.Username)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errors.New("token server: bad address")
	}
	if cred.Username != "" {
		req.SetBasicAuth(cred.Username, cred.Password)
	}
	return req, nil
}

// token sends one request to the token server.
func (a *authorizer) token(req *http.Request) (string, error) {
	what := "token from " + req.URL.Host
	req.Header.Set("User-Agent", a.c.o.UserAgent)
	resp, err := a.c.follow(req)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, a.c.secrets.scrub(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		e := a.c.statusError("token", resp)
		e.what, e.token = what, true
		return "", e
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer))
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	// The answer holds the token: an error says nothing of it.
	if json.Unmarshal(b, &answer) != nil {
		return "", finalError{fmt.Errorf("%s: answer is not valid JSON: %w", what, fault.ErrUnauthorized)}
	}
	token := answer.Token
	if token == "" {
		token = answer.AccessToken
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", finalError{fmt.Errorf("%s: no token in the answer: %w", what, fault.ErrUnauthorized)}
	}
	return token, nil
}
