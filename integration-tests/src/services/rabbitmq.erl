%% Runs inside the test node: answers whether it is up and who it is, adds and deletes virtual hosts.
%% rabbitmqctl would take a second for each. `@DIR@` and `@NONCE@` are filled in by the harness.
spawn(fun() ->
  {ok, Listen} = gen_tcp:listen(0, [binary, {packet, line}, {active, false}, {ip, {127,0,0,1}}]),
  {ok, Port} = inet:port(Listen),
  ok = file:write_file("@DIR@/control.new", integer_to_list(Port)),
  ok = file:rename("@DIR@/control.new", "@DIR@/control.port"),
  Run = fun
    ([<<"ready">>]) ->
      true = rabbit:is_running(),
      <<"@NONCE@">>;
    ([<<"add">>, Name]) ->
      ok = rabbit_vhost:add(Name, <<"harness">>),
      ok = rabbit_auth_backend_internal:set_permissions(
        <<"guest">>, Name, <<".*">>, <<".*">>, <<".*">>, <<"harness">>),
      <<"ok">>;
    ([<<"delete">>, Name]) ->
      ok = rabbit_vhost:delete(Name, <<"harness">>),
      <<"ok">>
  end,
  Serve = fun Serve(Socket) ->
    case gen_tcp:recv(Socket, 0) of
      {ok, Line} ->
        Answer =
          try Run(binary:split(string:trim(Line), <<" ">>))
          catch Class:Reason -> unicode:characters_to_binary(io_lib:format("error ~0p ~0p", [Class, Reason]))
          end,
        gen_tcp:send(Socket, [Answer, $\n]),
        Serve(Socket);
      {error, _} ->
        gen_tcp:close(Socket)
    end
  end,
  Accept = fun Accept() ->
    {ok, Socket} = gen_tcp:accept(Listen),
    Worker = spawn(fun() -> receive go -> Serve(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Worker),
    Worker ! go,
    Accept()
  end,
  Accept()
end).
