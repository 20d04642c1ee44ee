package vernemq_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/vernemq"
)

// The script reads both files in the broker's own language, with the functions of
// Erlang that its loaders use, and by nothing but the documented grammar: each line
// has to match. It checks one password and prints what it has read.
const erlangScript = `
main([Passwd, Acl, User, Password]) ->
    {ok, P} = file:read_file(Passwd),
    Users = [begin
        [Name, Rest] = re:split(Line, ":"),
        [<<>>, <<"6">>, Salt, Hash] = binary:split(Rest, <<"$">>, [global]),
        {Name, base64:decode(Salt), Hash}
    end || Line <- whole_lines(P)],
    {_, S, H} = lists:keyfind(list_to_binary(User), 1, Users),
    H = base64:encode(crypto:hash(sha512, [Password, S])),
    {ok, A} = file:read_file(Acl),
    {_, N} = lists:foldl(fun(L, Acc) -> line(L, Acc) end, {none, 0}, whole_lines(A)),
    io:format("~b users, ~b rules~n", [length(Users), N]).

line(<<"user ", Name/binary>>, {_, N}) -> {Name, N};
line(<<"topic read ", T/binary>>, {U, N}) when U =/= none, T =/= <<>> -> {U, N + 1};
line(<<"topic write ", T/binary>>, {U, N}) when U =/= none, T =/= <<>> -> {U, N + 1}.

whole_lines(<<>>) -> [];
whole_lines(B) ->
    [<<>> | Lines] = lists:reverse(binary:split(B, <<"\n">>, [global])),
    lists:reverse(Lines).
`

// An export reads in Erlang as it does in Go.
func TestErlang(t *testing.T) {
	if _, err := exec.LookPath("escript"); err != nil {
		t.Fatal("there is no escript: apt-get install erlang-base erlang-crypto")
	}
	f := small(t)
	dir := t.TempDir()
	sum := write(t, dir, f, templates.Options{Now: f.Now})
	script := filepath.Join(t.TempDir(), "read.escript")
	if err := os.WriteFile(script, []byte("#!/usr/bin/env escript\n"+erlangScript), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "escript", script, filepath.Join(dir, vernemq.PasswordName), filepath.Join(dir, vernemq.ACLName), "dev-1", "correct horse")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, want := strings.TrimSpace(string(out)), fmt.Sprintf("%d users, %d rules", sum.Users, sum.Rules); got != want {
		t.Errorf("Erlang reads %q, want %q", got, want)
	}
}
